// Two images on top of each other with a slider between them.

import { addStyles, make } from "../page/frontend.mjs";
import { words } from "../words.mjs";

const TEXTS = {
  en: {
    with: "with",
    without: "without",
    slider: "Fraction of the image shown with",
    value: (percent) => `${percent}% with, ${100 - percent}% without`,
    close: "Close",
    previous: "Previous image",
    next: "Next image",
    count: (number, of) => `${number} of ${of}`,
    image: (which, title) => `${title}: ${which}`,
    keys: "Drag, or use the arrow keys. Home and End show one image only, Escape closes.",
  },
  zh: {
    with: "使用",
    without: "不使用",
    slider: "“使用”的图像所占比例",
    value: (percent) => `使用 ${percent}%，不使用 ${100 - percent}%`,
    close: "关闭",
    previous: "上一张",
    next: "下一张",
    count: (number, of) => `${number} / ${of}`,
    image: (which, title) => `${title}：${which}`,
    keys: "拖动，或用方向键。Home 和 End 只显示其中一张，Escape 关闭。",
  },
};

await addStyles("compare.css");

/** Args: title, the compared nodes; pairs, [address with, address without]. */
export function show(title, pairs) {
  const text = words(TEXTS);
  const dialog = make("dialog", "mmdit-compare");
  dialog.ariaLabel = title;
  const stage = make("div", "mmdit-stage");
  const [without, shown] = ["without", "with"].map((which) => {
    const image = make("img", which);
    image.alt = text.image(text[which], title);
    image.draggable = false;
    return image;
  });
  const slider = make("input", "");
  Object.assign(slider, { type: "range", min: 0, max: 100, step: 1, value: 50, ariaLabel: text.slider });
  const set = (percent) => {
    slider.value = percent;
    stage.style.setProperty("--percent", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", text.value(Number(slider.value)));
  };
  slider.addEventListener("input", () => set(slider.value));
  const labels = [make("span", "with", text.with), make("span", "without", text.without)];
  for (const label of labels) label.ariaHidden = "true";
  // The line must follow the slider: it shows the slider's focus.
  stage.append(without, shown, slider, make("div", "line"), ...labels);
  onDrag(stage, set);
  without.addEventListener("load", () => {
    stage.style.setProperty("--ratio", without.naturalWidth / without.naturalHeight);
  });

  const close = button("×", text.close, () => dialog.close());
  const bar = make("header", "");
  bar.append(make("b", "", title), ...(pairs.length > 1 ? pages(pairs.length, text, open) : []), close);
  dialog.append(bar, stage, make("small", "", text.keys));
  // ComfyUI has its own keys, such as Delete for the selected node.
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // outside it
  dialog.addEventListener("close", () => dialog.remove());

  function open(number) {
    [shown.src, without.src] = pairs[number];
  }
  open(0);
  set(50);
  document.body.append(dialog);
  dialog.showModal();
  slider.focus();
}

/** Args: move, called during a drag with the position in percent of the width. */
function onDrag(stage, move) {
  const follow = ({ clientX }) => {
    const { left, width } = stage.getBoundingClientRect();
    move(Math.round(Math.min(1, Math.max(0, (clientX - left) / width)) * 100));
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    stage.querySelector("input").focus();
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => stage.hasPointerCapture(event.pointerId) && follow(event));
}

/** Buttons for the previous and the next image. */
function pages(of, text, open) {
  let number = 0;
  const count = make("span", "", text.count(1, of));
  count.setAttribute("role", "status");
  const turn = (by) => () => {
    number = (number + by + of) % of;
    count.textContent = text.count(number + 1, of);
    open(number);
  };
  return [button("‹", text.previous, turn(-1)), count, button("›", text.next, turn(1))];
}

function button(sign, label, run) {
  const made = make("button", "", sign);
  Object.assign(made, { type: "button", ariaLabel: label, title: label });
  made.addEventListener("click", run);
  return made;
}
