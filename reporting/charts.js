// Draws the charts of the page: in the colours of the reader's screen, as wide as there is room. Without this script
// the page shows the pictures that are in it, which are also what is printed.
const page = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");

async function draw() {
  const config = structuredClone(page.config[dark.matches ? "dark" : "light"]);
  if (narrow.matches) Object.assign(config.legend, { columns: 1, labelLimit: 130 });
  for (const [name, chart] of Object.entries(page.charts)) {
    const figure = document.getElementById(name);
    const live = figure.querySelector(".live");
    live.hidden = false;
    const options = { renderer: "svg", actions: false, ast: true, defaultStyle: false, config, tooltip };
    try {
      await vegaEmbed(live, { ...chart, title: undefined, width: "container" }, options);
      figure.classList.add("drawn");
    } catch (error) {
      live.hidden = true;
      console.error(error);
    }
  }
  document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
}

const tooltip = { disableDefaultStyle: true };
let last = Promise.resolve();
for (const query of [dark, narrow]) query.addEventListener("change", () => (last = last.then(draw)));
last = draw();
