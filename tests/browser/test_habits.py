"""What users of other nodes expect: a seed of -1, folded advanced inputs, steps that are reused."""

from __future__ import annotations

import pytest

from tests.browser.strips import checked

pytestmark = pytest.mark.frontend(renderer="nodes2")

QUICKSTART = "workflows/quickstart.json"
# Every job that the page sends, without running it.
RECORD = """() => {
    window.jobs = [];
    window.sent ??= app.api.fetchApi;
    app.api.fetchApi = function (route, options) {
        if (route !== "/prompt") return window.sent.call(this, route, options);
        const { prompt, extra_data } = JSON.parse(options.body);
        window.jobs.push({ prompt, workflow: extra_data.extra_pnginfo.workflow });
        const body = JSON.stringify({ prompt_id: `${window.jobs.length}`, number: 1, node_errors: {} });
        return Promise.resolve(new Response(body, { status: 200 }));
    };
}"""
UNRECORD = "() => { app.api.fetchApi = window.sent; }"
SAMPLER = "const node = app.graph._nodes.find((each) => each.type === 'FlowMatchingSampler');"


@pytest.fixture
def comfy(shared):
    yield from checked(shared)


@pytest.fixture
def jobs(comfy):
    """Queue the graph `count` times. Returns: the jobs that the page sent."""

    def queue(count=1):
        comfy.run(RECORD)
        comfy.run("async (count) => { for (let i = 0; i < count; i += 1) await app.queuePrompt(0, 1); }", count)
        return comfy.run("() => window.jobs")

    yield queue
    comfy.run(UNRECORD)


def seeds_of(job, widget=0):
    (prompt,) = [node for node in job["prompt"].values() if node["class_type"] == "FlowMatchingSampler"]
    (saved,) = [node for node in job["workflow"]["nodes"] if node["type"] == "FlowMatchingSampler"]
    return prompt["inputs"]["seed"], saved["widgets_values"][widget]


@pytest.mark.parametrize("control", ["fixed", "randomize", "increment"])
def test_a_seed_of_minus_1_is_drawn_for_each_job_and_stored_in_it(comfy, jobs, control):
    comfy.load(QUICKSTART)
    comfy.run(f"(control) => {{ {SAMPLER} node.widgets[0].value = -1; node.widgets[1].value = control; }}", control)
    first, second = jobs(2)
    assert seeds_of(first)[0] == seeds_of(first)[1] >= 0 and seeds_of(second)[0] == seeds_of(second)[1] >= 0
    assert seeds_of(first) != seeds_of(second)
    assert comfy.run(f"() => {{ {SAMPLER} return node.widgets[0].value; }}") == -1


def test_the_last_seed_is_shown_and_one_click_keeps_it(comfy, jobs):
    comfy.load(QUICKSTART)
    comfy.run(f"() => {{ {SAMPLER} node.widgets[0].value = -1; }}")
    (job,) = jobs()
    seed, _ = seeds_of(job)
    comfy.fit()
    button = comfy.page.get_by_role("button", name=f"Use the last seed, {seed}")
    button.click()
    assert comfy.run(f"() => {{ {SAMPLER} return node.widgets[0].value; }}") == seed
    button.wait_for(state="detached")
    assert seeds_of(*jobs()) == (seed, seed)
    prompt = comfy.prompt()
    assert seeds_of({**job, "prompt": prompt})[0] == seed


def test_a_seed_that_a_primitive_holds_is_drawn_too(comfy, jobs):
    comfy.load(QUICKSTART)
    comfy.run(f"""() => {{
        {SAMPLER}
        const held = LiteGraph.createNode("PrimitiveNode");
        app.graph.add(held);
        held.connect(0, node, node.inputs.findIndex((input) => input.name === "seed"));
        held.widgets[0].value = -1;
    }}""")
    (job,) = jobs()
    (held,) = [node for node in job["workflow"]["nodes"] if node["type"] == "PrimitiveNode"]
    seed, _ = seeds_of(job)
    assert seed >= 0 and held["widgets_values"][0] == seed


EVENT = "([kind, detail]) => app.api.dispatchCustomEvent(kind, detail)"
TEXT_SHOWN = f"() => {{ {SAMPLER} return node.widgets.some(({{ name }}) => name === 'run'); }}"


def test_a_run_does_not_write_on_another_open_workflow(comfy, jobs):
    """Two copies of a template have the same node ids."""
    comfy.load(QUICKSTART)
    jobs()
    sampler = comfy.run(f"() => {{ {SAMPLER} return node.id; }}")
    text = ["progress_text", {"nodeId": str(sampler), "text": "12 model calls"}]
    comfy.run(EVENT, ["execution_start", {"prompt_id": "1"}])
    comfy.load(QUICKSTART)
    comfy.run(EVENT, text)
    assert not comfy.run(TEXT_SHOWN)
    comfy.run("async () => await app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    comfy.wait_stable()
    comfy.run(EVENT, text)
    assert comfy.run(TEXT_SHOWN)


ADD = """(type) => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return node.id;
}"""
ROWS = """(id) => {
    const node = app.graph.getNodeById(id);
    return { rows: node.widgets.filter((widget) => !widget.hidden).map(({ name }) => name), size: [...node.size],
        fits: node.size[1] >= node.computeSize()[1] - 1, inputs: node.inputs.length,
        values: node.serialize().widgets_values.length };
}"""


def test_classic_folds_the_advanced_inputs_and_a_click_unfolds_them(comfy, test_output):
    node = comfy.run(ADD, "FlowMatchingSampler")
    comfy.wait_stable()
    before = comfy.run(ROWS, node)
    if comfy.renderer == "nodes2":
        assert "advanced" not in before["rows"] and "tolerance" in before["rows"], "Nodes 2.0 folds them by itself"
        comfy.page.get_by_text("Show advanced inputs").wait_for()
        assert comfy.page.get_by_text("advanced", exact=True).count() == 0
        return
    comfy.page.screenshot(path=test_output / "folded.png")
    assert "tolerance" not in before["rows"] and "cfg" in before["rows"] and "advanced" in before["rows"]
    toggle = "(id) => app.graph.getNodeById(id).widgets.find(({ name }) => name === 'advanced').callback()"
    comfy.run(toggle, node)
    opened = comfy.run(ROWS, node)
    assert "tolerance" in opened["rows"] and opened["size"][1] > before["size"][1] + 150 and opened["fits"]
    assert (opened["inputs"], opened["values"]) == (before["inputs"], before["values"])
    comfy.run("(id) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'eta').value = 0.5; }", node)
    comfy.run(toggle, node)
    closed = comfy.run(ROWS, node)
    assert "eta" in closed["rows"] and "tolerance" not in closed["rows"], "what was changed stays in view"
    assert closed["fits"]
    saved = comfy.graph()
    comfy.load(saved)
    assert comfy.run(ROWS, node)["rows"] == closed["rows"]
    (found,) = comfy.prompt().values() if comfy.prompt() else [None]
    assert found is None or found["inputs"]["tolerance"] == 1e-3


def test_a_new_sampler_reuses_steps_and_a_saved_one_keeps_its_value(comfy):
    node = comfy.run(ADD, "FlowMatchingSampler")
    value = "(id) => app.graph.getNodeById(id).widgets.find(({ name }) => name === 'reuse').value"
    assert comfy.run(value, node) is True
    comfy.load(QUICKSTART)
    sampler = comfy.run(f"() => {{ {SAMPLER} return node.id; }}")
    assert comfy.run(value, sampler) is False
