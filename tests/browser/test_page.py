"""The browser harness itself, on ComfyUI's own nodes; and how the pack's page sends requests."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

IMAGE_GRAPH = {
    "last_node_id": 2,
    "last_link_id": 1,
    "nodes": [
        {
            "id": 1,
            "type": "EmptyImage",
            "pos": [50, 50],
            "size": [270, 130],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
            "widgets_values": [64, 48, 1, 255],
        },
        {
            "id": 2,
            "type": "PreviewImage",
            "pos": [400, 50],
            "size": [250, 250],
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}


def test_a_graph_loads_runs_and_is_drawn(comfy, renderer, test_output):
    comfy.load(IMAGE_GRAPH)
    assert comfy.unknown_nodes() == []
    assert comfy.prompt()["1"]["inputs"] == {"width": 64, "height": 48, "batch_size": 1, "color": 255}
    record = comfy.queue()
    assert comfy.server.images(record)[0][:4] == b"\x89PNG"
    drawn_as_html = comfy.page.locator("[data-node-id]").count() > 0
    assert drawn_as_html == (renderer == "nodes2")
    comfy.screenshot(test_output / f"page-{renderer}.png")


def test_an_unknown_node_is_reported(comfy):
    comfy.load({**IMAGE_GRAPH, "nodes": [{**IMAGE_GRAPH["nodes"][0], "type": "NoSuchNode"}], "links": []})
    assert comfy.unknown_nodes() == ["NoSuchNode"]


# Five requests of one owner, the first of them answered late. Returns what each gave, and the bodies that were sent.
FIVE = """async (path) => {
    const { requestLatest } = await import(path);
    const send = app.api.fetchApi, sent = [];
    let answer;
    app.api.fetchApi = async (route, { body }) => {
        sent.push(JSON.parse(body));
        if (sent.length === 1) await new Promise((resolve) => (answer = resolve));
        return new Response(body, { status: 200 });
    };
    try {
        const owner = {}, other = {};
        const first = requestLatest(owner, "/x", 1);
        await new Promise((resolve) => setTimeout(resolve, 10));
        const later = [2, 3, 4].map((body) => requestLatest(owner, "/x", body));
        const others = requestLatest(other, "/x", 5);
        await new Promise((resolve) => setTimeout(resolve, 10));
        answer();
        const given = await Promise.all([first, ...later, others]);
        return { given: given.map((each) => each ?? null), sent };
    } finally {
        app.api.fetchApi = send;
    }
}"""


def test_of_the_requests_made_during_one_only_the_last_is_sent(comfy):
    found = comfy.run(FIVE, f"/extensions/{ROOT.name}/js/page/frontend.mjs")
    assert found == {"given": [1, None, None, 4, 5], "sent": [1, 5, 4]}
