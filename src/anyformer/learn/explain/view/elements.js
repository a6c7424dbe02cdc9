// Elements of the page, made of text alone: nothing that comes with a model is read as HTML.

const element = (tag, properties = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [property, part] of Object.entries(value)) made.style.setProperty(property, part);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
};

const percent = (share) => (share > 0 && share < 0.01 ? "<1%" : `${Math.round(share * 100)}%`);
const decimals = (number) => (Math.abs(number) >= 100 ? number.toFixed(0) : Math.abs(number) >= 10 ? number.toFixed(1) : number.toFixed(2));
// A token whose spaces and line ends can be seen.
const visible = (text) => {
  const marked = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
  return marked.trim() === "" ? marked.replace(/ /g, "␣") || "∅" : marked;
};
const quoted = (text) => `“${visible(text)}”`;

// Rows of a name, a bar and a number. With `choose` each row is a button.
const bars = (rows, { choose = null, label = "" } = {}) => {
  const largest = Math.max(...rows.map(({ size }) => Math.abs(size)), 1e-9);
  return element("ol", { class: "bars", "aria-label": label }, rows.map(({ name, size, text, value, tone, hint }) => {
    const bar = element("i", { class: tone ?? "", style: { "--share": `${(100 * Math.abs(size)) / largest}%` } });
    const parts = [element("span", { class: "name" }, name), element("span", { class: "track", "aria-hidden": "true" }, bar), element("span", { class: "number" }, text)];
    return element("li", {}, choose ? element("button", { type: "button", title: hint, onclick: () => choose(value) }, parts) : element("div", {}, parts));
  }));
};

// A vector as a stripe: a cell for each number, blue where it is negative, orange where it is positive.
const stripe = (vector, label) => {
  const canvas = element("canvas", { class: "stripe", role: "img", "aria-label": label });
  canvas.width = vector.length; canvas.height = 1;
  const largest = vector.reduce((best, number) => Math.max(best, Math.abs(number)), 1e-9), context = canvas.getContext("2d");
  const colors = ["--c0", "--c1"].map((name) => getComputedStyle(document.documentElement).getPropertyValue(name));
  vector.forEach((number, i) => {
    context.globalAlpha = Math.sqrt(Math.abs(number) / largest);
    context.fillStyle = colors[Number(number > 0)];
    context.fillRect(i, 0, 1, 1);
  });
  return canvas;
};

const length = (vector) => Math.sqrt(vector.reduce((sum, number) => sum + number * number, 0));
