// Style sheets that come with a module, and not with the first node.

/** Load a style sheet of css/ once; resolves when it is there, or cannot be had. */
export function addStyles(name) {
  const link = document.createElement("link");
  const done = new Promise((resolve) => (link.onload = link.onerror = resolve));
  Object.assign(link, { rel: "stylesheet", href: new URL(`../css/${name}`, import.meta.url) });
  document.head.append(link);
  return done;
}
