// Feature cards: made when they are about to be seen; sorted, filtered and searched in the page.

const BATCH = 12;
const ORDERS = {
  latent: (a, b) => a.latent - b.latent,
  dense: (a, b) => b.density - a.density,
  rare: (a, b) => a.density - b.density,
  strong: (a, b) => b.maximum - a.maximum,
};
const BANDS = { all: [-1, 2], rare: [1e-12, 1e-3], middle: [1e-3, 1e-2], dense: [1e-2, 2], dead: [-1, 1e-12] };
const CONTROL = { "\n": "↵", "\r": "␍", "\t": "→" };

// Control characters, white space that would vanish, and characters without width get a visible stand-in.
function visible(text) {
  const shown = text.replace(/[\u0000-\u001f\u007f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, (c) =>
    CONTROL[c] ?? (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : `‹${c.charCodeAt(0).toString(16)}›`));
  return shown.trim() ? shown : shown.replace(/ /g, "␣");
}

function token(card, example, i) {
  const text = data.features.texts[example.tokens[i]], act = example.acts[i];
  const kinds = ["tok"];
  if (act > 0) kinds.push("on");
  if (act == null) kinds.push("skipped");
  if (i === example.focus) kinds.push("focus");
  if (text.endsWith("\n")) kinds.push("newline");
  const span = el("span", { class: kinds.join(" ") }, visible(text));
  span.dataset.tip = `${JSON.stringify(text)}  ${act == null ? "not measured" : number(act, 4)}`;
  if (act > 0) {
    span.style.setProperty("--a", Math.min(1, act / card.maximum).toFixed(3));
    if (i === example.focus) set(span, { tabindex: 0, "aria-label": `${text} activation ${number(act, 4)}` }, []);
  }
  return span;
}

function exampleList(card, examples) {
  return el("ol", { class: "examples" }, ...examples.map((example) =>
    el("li", {},
      el("span", { class: "at", "data-tip": `document ${example.doc}, token ${example.offset}` }, measure(example.value)),
      el("span", { class: "text" }, ...example.tokens.map((_, i) => token(card, example, i))),
      example.copies > 1
        ? el("span", { class: "copies", "data-tip": `${number(example.copies)} tokens stand in this very context` }, `×${number(example.copies)}`)
        : null)));
}

function histogram(card) {
  const { edges, counts } = card.histogram;
  const most = Math.max(...counts), width = 240 / counts.length;
  const bars = counts.map((count, i) => {
    const height = count ? Math.max(1.5, (72 * count) / most) : 0;
    return svg("rect", { class: "bar", x: i * width + 0.5, width: Math.max(0.5, width - 1), y: 76 - height, height,
      "data-tip": `${number(edges[i])} to ${number(edges[i + 1])}: ${number(count)} tokens` });
  });
  return el("div", {}, el("h3", {}, "Activations (log scale)"),
    svg("svg", { class: "bars", viewBox: "0 0 240 76", preserveAspectRatio: "none", role: "img",
      "aria-label": `activations from ${number(edges[0])} to ${number(edges.at(-1))}` }, ...bars),
    el("div", { class: "ends" }, el("span", {}, number(edges[0])), el("span", {}, number(edges.at(-1)))));
}

function logits(card) {
  if (!card.logits) return null;
  const list = (title, kind, pairs) => el("div", { class: kind }, el("h3", {}, title), el("ol", {}, ...pairs.map(([word, value]) =>
    el("li", { "data-tip": `${JSON.stringify(word)}  ${number(value, 4)}` }, el("code", {}, visible(word)), el("span", {}, measure(value))))));
  return el("div", { class: "logits" }, list("Promotes", "up", card.logits.top), list("Suppresses", "down", card.logits.bottom));
}

function lower(card) {
  const buckets = card.buckets.filter((bucket) => bucket.examples.length);
  if (!buckets.length) return null;
  return el("details", { class: "lower" }, el("summary", {}, "Random examples by strength"), ...buckets.flatMap((bucket) => [
    el("h4", {}, `${number(bucket.low)} to ${number(bucket.high)}, ${percent(bucket.share)} of firings`),
    exampleList(card, bucket.examples),
  ]));
}

function makeCard(card) {
  const id = `feature-${card.latent}`;
  const alive = card.count > 0;
  const head = el("header", {}, el("a", { href: `#${id}` }, `#${card.latent}`),
    ...(alive ? [`density ${percent(card.density)}`, `${number(card.count)} tokens`, `largest ${number(card.maximum, 4)}`] : ["silent"])
      .map((text) => el("span", {}, text)));
  const body = alive
    ? [el("aside", {}, histogram(card), logits(card)),
       el("section", {}, el("h3", {}, "Strongest examples"), exampleList(card, card.examples), lower(card))]
    : [el("p", { class: "empty" }, `No known activations: the latent fired on none of the ${number(data.features.measured)} tokens read.`)];
  return el("article", { class: "card panel", id, "aria-label": `feature ${card.latent}` }, head, ...body);
}

function browse(parent) {
  const { cards, texts } = data.features;
  const control = (id) => document.getElementById(id);
  const list = control("cards"), more = control("more"), shown = control("shown");
  const made = new Map();
  let chosen = [], count = 0;

  const words = (card) => {
    card.words ??= [`#${card.latent}`, ...card.examples.map((e) => e.tokens.map((t) => texts[t]).join("")),
      ...(card.logits ? [...card.logits.top, ...card.logits.bottom].map(([word]) => word) : [])].join("\n").toLowerCase();
    return card.words;
  };
  const extend = (to) => {
    for (const card of chosen.slice(count, to)) {
      if (!made.has(card.latent)) made.set(card.latent, makeCard(card));
      list.append(made.get(card.latent));
    }
    count = Math.max(count, Math.min(to, chosen.length));
    more.hidden = count >= chosen.length;
    shown.textContent = `${number(chosen.length)} of ${number(cards.length)} shown`;
  };
  const choose = () => {
    const wanted = control("search").value.toLowerCase(), [low, high] = BANDS[control("band").value];
    chosen = cards.filter((card) => card.density >= low && card.density < high && words(card).includes(wanted));
    chosen.sort(ORDERS[control("order").value]);
    list.replaceChildren();
    count = 0;
    extend(BATCH);
  };
  const follow = () => {
    const latent = Number(/^#feature-(\d+)$/.exec(location.hash)?.[1] ?? NaN);
    if (!cards.some((card) => card.latent === latent)) return;
    if (!chosen.some((card) => card.latent === latent)) {
      control("search").value = "";
      control("band").value = "all";
      choose();
    }
    extend(chosen.findIndex((card) => card.latent === latent) + 1);
    made.get(latent).scrollIntoView();
    // a card that was made only now becomes the target once it is navigated to again
    if (!made.get(latent).matches(":target")) location.replace(location.hash);
  };

  for (const id of ["search", "order", "band"]) control(id).addEventListener("input", choose);
  control("breaks").addEventListener("input", (event) => parent.classList.toggle("breaks", event.target.checked));
  control("random").addEventListener("click", () => {
    if (chosen.length) location.hash = `feature-${chosen[Math.floor(Math.random() * chosen.length)].latent}`;
  });
  more.addEventListener("click", () => extend(count + BATCH));
  new IntersectionObserver((seen) => { if (seen[0].isIntersecting && !more.hidden) extend(count + BATCH); }, { rootMargin: "900px" }).observe(more);
  addEventListener("hashchange", follow);
  choose();
  follow();
}
if (data.features) browse(document.getElementById("browser"));
