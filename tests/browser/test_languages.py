"""The pack in Chinese and back in English: nodes, help pages, strip, curve, settings."""

from __future__ import annotations

import json
import re

import pytest

from scripts.environment import ROOT
from tests.browser.conftest import TOAST
from tests.browser.quickstart import ADD, OF, RUN_TEXT, SET, compare_by_toolbox
from tests.browser.strips import opened

NODE = "FlowMatchingSampler"
SHOWN = """(type) => {
    const node = app.graph._nodes.find((node) => node.type === type);
    return {
        title: node.title,
        inputs: Object.fromEntries(node.inputs.map((input) => [input.name, input.label || input.localized_name])),
        widgets: Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.label || widget.name])),
    };
}"""


# All names on a node of each type: { title, inputs, widgets, outputs }.
NAMED = """(types) => Object.fromEntries(types.map((type) => {
    const node = LiteGraph.createNode(type);
    const named = (slots) => slots.map(({ name, label, localized_name }) => [name, label || localized_name || name]);
    return [type, {
        title: node.title,
        inputs: Object.fromEntries(named(node.inputs)),
        widgets: Object.fromEntries(named(node.widgets ?? [])),
        // ComfyUI translates an output that is named like its type.
        outputs: Object.fromEntries(node.outputs.flatMap((output, index) =>
            output.name === output.type ? [] : [[String(index), named([output])[0][1]]])),
    }];
}))"""
PROGRESS = f"""(value) => {{
    {OF}
    const node = String(of("{NODE}").id);
    app.api.dispatchCustomEvent("execution_start", {{ prompt_id: "x" }});
    app.api.dispatchCustomEvent("progress", {{ node, prompt_id: "x", value, max: 28 }});
}}"""
# Every text of the pack in the page, including those for screen readers and tooltips.
OURS = """() => [...document.querySelectorAll(":is([class^=mmdit], [class^=mmdit] *)")].flatMap((each) => [
    ...[...each.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE).map((child) => child.data),
    ...["aria-label", "aria-valuetext", "title", "alt", "placeholder"].map((name) => each.getAttribute(name) ?? ""),
])"""
RENDERER_SEEDS = {"classic": 1, "nodes2": 2}  # what ComfyUI has cached makes no new summary
NAMES = {"CFG", "CLIP-L", "CLIP-G", "sigma", "Home", "End", "Escape"}  # the same in every language


def words(language: str) -> dict:
    return definitions(language)[NODE]


def definitions(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def left_in_english(comfy) -> set[str]:
    """Latin words of the pack in the page, except names."""
    return {word for text in comfy.run(OURS) for word in re.findall(r"[A-Za-z][A-Za-z-]+", text)} - NAMES


def set_language(comfy, language: str) -> None:
    """Set the language as the settings panel does, and open the workflow."""
    comfy.run("async (language) => await app.extensionManager.setting.set('Comfy.Locale', language)", language)
    comfy.reload()
    comfy.load(ROOT / "workflows" / "quickstart.json")


def test_nodes_and_help_pages_use_the_language_of_the_settings(comfy):
    sent = {}
    for language in ("zh", "en"):
        set_language(comfy, language)
        expected, shown = words(language), comfy.run(SHOWN, NODE)
        assert shown["title"] == expected["display_name"]
        for name, text in expected["inputs"].items():
            assert shown["inputs"][name] == text["name"]
            assert shown["widgets"].get(name, text["name"]) == text["name"]
        sent[language] = comfy.prompt()
        if language == "zh":
            check_tokens(comfy)
            check_help(comfy)
            check_strip(comfy)
            check_settings(comfy)
    without_titles = [
        {number: (node["class_type"], node["inputs"]) for number, node in prompt.items()} for prompt in sent.values()
    ]
    assert without_titles[0] == without_titles[1]  # the language does not change the prompt
    assert comfy.pack_errors() == []


@pytest.mark.frontend
def test_the_curve_and_the_comparison_are_translated_completely(chinese):
    check_names(chinese)
    chinese.load(ROOT / "workflows" / "quickstart.json")
    check_curve(chinese)
    check_comparison(chinese)
    assert chinese.pack_errors() == []


def check_names(comfy) -> None:
    """Every name on the nodes is the locale's."""
    expected = definitions("zh")
    for kind, shown in comfy.run(NAMED, list(expected)).items():
        texts = expected[kind]
        inputs = {name: each["name"] for name, each in texts["inputs"].items()}
        assert shown["title"] == texts["display_name"]
        assert shown["outputs"] == {index: texts["outputs"][index]["name"] for index in shown["outputs"]}
        assert shown["inputs"] == inputs
        # Other widgets: the seed's control, which is ComfyUI's, and notes, which show no name.
        assert {name: label for name, label in shown["widgets"].items() if name in inputs}.items() <= inputs.items()


def check_curve(comfy) -> None:
    comfy.run(SET, [NODE, {"steps": 12}])
    comfy.run(ADD, ["TextBoost", {"blocks": "1-3", "end_percent": 0.5, "mode": "attention"}])
    comfy.page.wait_for_function("document.querySelectorAll('.mmdit-band').length === 2")
    figure = comfy.page.locator(".mmdit-figure")
    comfy.page.wait_for_function("document.querySelector('.mmdit-figure').ariaLabel.includes('12 步')")
    assert re.fullmatch(
        r"sigma：12 步，偏移 [\d.]+（模型自带），从 1 到 0。CFG 4.5：第 0 到 11 步。增强 1-3：第 0 到 \d 步。",
        figure.get_attribute("aria-label") or "",
    )
    assert figure.locator(".mmdit-band").all_inner_texts() == ["CFG 4.5", "增强 1-3"]
    comfy.fit()
    figure.hover()
    comfy.page.get_by_text(re.compile("^第 6 步：sigma 0\\.")).wait_for()
    assert left_in_english(comfy) == set()
    comfy.run("() => app.graph._nodes.find((node) => node.type === 'TextBoost').disconnectInput(0)")
    shift = words("zh")["inputs"]["shift"]["name"]
    comfy.page.get_by_text(f"运行后显示曲线：模型未知。设置“{shift}”可立即显示。").wait_for()
    comfy.run("""() => {
        const of = (type) => app.graph._nodes.find((node) => node.type === type);
        of("MMDiTLoader").connect(0, of("TextBoost"), 0);
    }""")


def check_comparison(comfy) -> None:
    """With the Text Boost node that check_curve has added."""
    boost = definitions("zh")["TextBoost"]["display_name"]
    comfy.run(SET, [NODE, {"steps": 10_000}])  # long enough for a slow page
    compare_by_toolbox(comfy, "TextBoost", "对比使用前后")
    bar = comfy.page.locator(".mmdit-running")
    bar.get_by_text(re.compile(rf"^正在生成不使用 {boost} 的图像：第 \d+ / 10000 步$")).wait_for()
    assert left_in_english(comfy) == set()
    bar.get_by_role("button", name="取消").click()
    comfy.page.locator(TOAST, has_text="对比已取消。").wait_for()
    comfy.run(SET, [NODE, {"steps": 2}])
    compare_by_toolbox(comfy, "TextBoost", "对比使用前后")
    dialog = comfy.page.get_by_role("dialog", name=f"使用与不使用 {boost}")
    dialog.wait_for()
    assert dialog.locator("span").all_inner_texts() == ["使用", "不使用"]
    slider = dialog.get_by_role("slider", name="“使用”的图像所占比例")
    assert slider.get_attribute("aria-valuetext") == "使用 50%，不使用 50%"
    assert left_in_english(comfy) == set()
    dialog.get_by_role("button", name="关闭").click()
    dialog.wait_for(state="detached")


def check_help(comfy) -> None:
    comfy.run("(type) => app.canvas.selectNode(app.graph._nodes.find((node) => node.type === type))", NODE)
    comfy.page.locator("[data-testid=info-button]").first.click()
    page = comfy.page.locator(".node-help-content")
    first = (ROOT / "web" / "docs" / NODE / "zh.md").read_text(encoding="utf-8").splitlines()[2]
    page.get_by_text(first, exact=True).wait_for()
    image = page.locator("img").first
    assert image.get_attribute("src") == f"/extensions/{ROOT.name}/docs/{NODE}.png"
    width = image.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }")
    assert width > 300


def check_tokens(comfy) -> None:
    note = comfy.page.locator(".mmdit-note", has_text="CLIP-L")
    comfy.page.wait_for_function("document.querySelector('.mmdit-note')?.innerText.includes('CLIP-L 14')")
    assert [line.split("CLIP-L")[0].strip() for line in note.inner_text().splitlines() if line.strip()][:1] == [
        "提示词"
    ]
    comfy.fit()
    for value, text in ((1, "第 1 / 28 步"), (2, r"第 2 / 28 步，每步 [\d.e-]+ 秒，还需 \d+ 秒")):
        comfy.run(PROGRESS, value)
        comfy.page.wait_for_function(f"() => ({RUN_TEXT})('{NODE}')?.[0].startsWith('第 {value} ')")
        assert re.fullmatch(text, "".join(comfy.run(RUN_TEXT, NODE)))


def check_strip(comfy) -> None:
    strip = opened(comfy, "TextBoost")
    strip.set("3:2")
    strip.mouse.move(*strip.place(3))
    strip.until("s.foot === '块 3 · 增强 × 2'", 3)
    assert comfy.page.get_by_role("listbox", name="块：已选 1 / 24").count() == 1
    *whole, preset, none = strip.menu(3)
    assert whole == ["全选", "全不选", "反选", "前三分之一", "中三分之一", "后三分之一", "复制文本", "粘贴文本"]
    assert none == "不用预设" and preset, "presets have the same name in all languages"
    assert comfy.page.get_by_role("menuitem", name="另存为预设…", disabled=True).count() == 1, "the model is unknown"
    strip.press("Escape", "Escape")
    assert left_in_english(comfy) == set()
    strip.mouse.move(700, 700)
    for text, expected in (
        ("frog", "“frog”：无法识别。"),
        ("3:x", "“3:x”：冒号后的强度"),
        ("5-3", "“5-3”：范围写反了"),
    ):
        strip.set(text)
        strip.until(f"s.foot.startsWith('{expected}')")


def check_settings(comfy) -> None:
    texts = json.loads((ROOT / "locales" / "zh" / "settings.json").read_text(encoding="utf-8"))
    comfy.run("() => void app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    dialog = comfy.page.get_by_role("dialog")
    dialog.get_by_text("MMDiT", exact=True).first.click()
    for entry in texts.values():
        dialog.get_by_text(entry["name"], exact=True).first.wait_for()
    for group in ("MMDiT 节点", "新建的流匹配采样器"):
        dialog.get_by_text(group, exact=True).first.wait_for()
    comfy.page.keyboard.press("Escape")


SAME = """async ([path, name]) => {
    const { [name]: languages } = await import(path);
    return Object.fromEntries(Object.entries(languages).map(([language, table]) => [
        language,
        Object.fromEntries(Object.entries(table).map(([key, word]) => [key, word.call ? word.length : word])),
    ]));
}"""


@pytest.mark.parametrize(("module", "name"), [("words.mjs", "LANGUAGES"), ("widgets/menu_words.mjs", "MENU")])
def test_each_language_has_all_texts(shared, module, name):
    tables = shared.run(SAME, [f"/extensions/{ROOT.name}/js/{module}", name])
    english, chinese = tables["en"], tables["zh"]
    assert list(english) == list(chinese) and len(english) > 15
    for key, word in english.items():
        assert isinstance(word, str) == isinstance(chinese[key], str)
        if isinstance(word, str) and key != "colon":
            assert re.search("[\u4e00-\u9fff]", chinese[key]), key


@pytest.mark.parametrize(
    ("answer", "foot"),
    [
        (
            {
                "sections": [{"name": "main", "count": 30}],
                "refiners": [{"name": "noise", "count": 2}, {"name": "context", "count": 2}],
                "double": 30,
                "single": 0,
            },
            "主干 0–29 · 噪声、上下文精炼块不计入",
        ),
        ({"double": 19, "single": 38}, "双流 0–18，单流 19–56"),
        ({"double": None, "single": None}, "模型未知：24 块只是猜测"),
    ],
)
def test_the_kinds_of_blocks_are_translated(chinese, answer, foot):
    chinese.page.route("**/mmdit/blocks?*", lambda route: route.fulfill(json=answer))
    total = (answer["double"] or 24) + (answer["single"] or 0)
    strip = opened(chinese, "BlockSkip", cells=total, file="any.safetensors")
    strip.mouse.move(700, 700)
    strip.until(f"s.foot === '{foot}'")
    assert left_in_english(chinese) <= {"d", "s"}
    strip.mouse.move(*strip.place(total - 1))
    strip.until(f"s.foot.startsWith('块 {total - 1}')", total - 1)
    assert chinese.pack_errors() == []


def test_a_shipped_workflow_has_its_note_in_chinese_and_a_changed_note_stays(chinese):
    path = ROOT / "workflows" / "boost-a-phrase.json"
    chinese.load(path)
    titles = "() => app.graph._nodes.map((node) => node.title)"
    chinese.page.wait_for_function("() => app.graph._nodes.some((node) => node.title === '增强一个短语')")
    assert {"使用", "不使用"} <= set(chinese.run(titles))
    changed = json.loads(path.read_text(encoding="utf-8"))
    (note,) = (node for node in changed["nodes"] if node["type"] == "MarkdownNote")
    note["widgets_values"] = ["mine"]
    chinese.load(changed)
    chinese.page.wait_for_timeout(500)
    assert "Boost a phrase" in chinese.run(titles) and "增强一个短语" not in chinese.run(titles)


# For each template: a message with values, what the page makes of it, and its Chinese text with the values.
TRANSLATED = """async (path) => {
    const { compile, translate } = await import(`${path}/js/messages.mjs`);
    const file = await (await fetch(`${path}/messages/zh.json`)).json();
    const known = compile(file);
    const filled = (text, values) => {
        let next = 0;
        return text.replace(/\\{(\\d*)\\}/g, (_, number) => values[number || next++]);
    };
    return Object.entries({ ...file.words, ...file.messages }).map(([english, chinese]) => {
        const values = [...english.matchAll(/\\{\\}/g)].map((_, index) => `${70 + index}`);
        const message = filled(english, values);
        return [message, translate(message, known), filled(chinese, values)];
    });
}"""


def test_the_page_finds_the_chinese_text_of_every_message(shared):
    found = shared.run(TRANSLATED, f"/extensions/{ROOT.name}")
    assert len(found) > 700
    assert [each for each in found if each[1].strip() != each[2].strip()] == []


@pytest.mark.frontend
def test_an_error_and_a_summary_are_in_chinese(chinese):
    comfy = chinese
    comfy.page.set_default_timeout(90_000)
    comfy.load(ROOT / "workflows" / "quickstart.json")
    comfy.run(SET, [NODE, {"steps": 2}])
    comfy.run(ADD, ["TextBoost", {"blocks": "3, 30"}])
    comfy.run("() => void app.queuePrompt(0)")
    error = comfy.page.locator(".mmdit-note.bad")
    error.wait_for(state="attached")  # the node may be out of view
    assert (error.text_content() or "").startswith("块：块 30 不存在")
    assert left_in_english(comfy) == set()
    comfy.page.keyboard.press("Escape")
    comfy.run(SET, ["TextBoost", {"blocks": "3"}])
    comfy.run(SET, [NODE, {"seed": RENDERER_SEEDS[comfy.renderer]}])
    comfy.run("() => void app.queuePrompt(0)")
    # The node may be out of view.
    comfy.page.wait_for_function(f"""() => app.graph._nodes.find(({{ type }}) => type === "{NODE}")
        .widgets.find(({{ name }}) => name === "run")?.element.textContent.startsWith("2 次模型调用")""")
    assert left_in_english(comfy) == set()
    assert comfy.pack_errors() == []
