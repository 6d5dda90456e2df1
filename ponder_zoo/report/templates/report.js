"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const payload = JSON.parse($("#payload").textContent);
  const root = document.documentElement;

  // Light or dark: the reader's system decides until the button is used.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const store = { get() { try { return localStorage.getItem("theme"); } catch { return null; } }, set(value) { try { localStorage.setItem("theme", value); } catch { /* a page opened from a mail may not store */ } } };
  const redraw = [];
  const setTheme = (theme) => { root.dataset.theme = theme; redraw.forEach((draw) => draw()); };
  setTheme(store.get() || (system.matches ? "dark" : "light"));
  system.addEventListener("change", (event) => { if (!store.get()) setTheme(event.matches ? "dark" : "light"); });
  $("#theme").addEventListener("click", () => { const next = root.dataset.theme === "dark" ? "light" : "dark"; store.set(next); setTheme(next); });
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Copy buttons
  $$("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const text = $("pre", button.parentElement).textContent;
    try { await navigator.clipboard.writeText(text); } catch {
      const range = document.createRange(); range.selectNodeContents($("pre", button.parentElement));
      getSelection().removeAllRanges(); getSelection().addRange(range); document.execCommand("copy");
    }
    button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }));

  // Pictures over time
  const light = $("#light"), body = $(".light-body");
  let current = null; // the series that is enlarged
  $$("[data-views]").forEach((figure) => {
    const thumbs = $$("[data-thumb]", figure), main = $("[data-main]", figure), slider = $("[data-slider]", figure), play = $("[data-play]", figure);
    let index = thumbs.length - 1, timer = null;
    const show = (next, scroll = true) => {
      index = Math.max(0, Math.min(thumbs.length - 1, next));
      const image = $("img", thumbs[index]);
      main.src = image.src; main.alt = image.alt; main.width = image.getAttribute("width"); main.height = image.getAttribute("height");
      $("[data-now]", figure).textContent = $("span", thumbs[index]).textContent;
      thumbs.forEach((thumb, i) => i === index ? thumb.setAttribute("aria-current", "true") : thumb.removeAttribute("aria-current"));
      if (slider) slider.value = index;
      if (scroll) thumbs[index].parentElement.scrollLeft = thumbs[index].offsetLeft - thumbs[index].parentElement.offsetLeft - 200;
      if (current === series) enlarge();
    };
    const enlarge = () => { $("img", body).src = main.src; $("img", body).alt = main.alt; $("[data-caption]", light).textContent = main.alt; };
    const series = { step: (by) => show(index + by) };
    const stop = () => { clearInterval(timer); timer = null; };
    thumbs.forEach((thumb, i) => thumb.addEventListener("click", () => { stop(); show(i, false); }));
    slider?.addEventListener("input", () => { stop(); show(Number(slider.value)); });
    play?.addEventListener("click", () => {
      if (timer) return stop();
      if (index === thumbs.length - 1) show(0);
      timer = setInterval(() => { show(index + 1); if (index === thumbs.length - 1) stop(); }, 700);
    });
    $("[data-open]", figure).addEventListener("click", () => { stop(); current = series; body.classList.remove("actual"); enlarge(); light.showModal(); });
    show(index);
  });
  const toggleSize = () => { const actual = body.classList.toggle("actual"); $("[data-size]", light).textContent = actual ? "Fit the window" : "Actual size"; };
  $("[data-size]", light).addEventListener("click", toggleSize);
  $("img", body).addEventListener("click", toggleSize);
  $("[data-close]", light).addEventListener("click", () => light.close());
  light.addEventListener("close", () => { current = null; });
  light.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") current?.step(-1);
    if (event.key === "ArrowRight") current?.step(1);
  });

  // plotly comes packed; the browser unpacks it
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const loadPlotly = async () => {
    const stream = new Blob([bytes($("#plotly").textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    return window.Plotly;
  };
  const fail = (error, where) => {
    console.error(error);
    $$("[data-fallback]", where ?? document).forEach((note) => { note.hidden = false; note.textContent = `This browser could not draw this (${error.message}). A browser of 2023 or newer with WebGL can; everything else on this page works without.`; });
  };

  // Curves
  const SERIES = ["#4c78d8", "#e0863c", "#2fa784", "#c2579b", "#8a6ad1", "#b89a2a", "#d2554f", "#4aa3c7"];
  const smooth = (values, weight) => { // exponential mean with bias correction; gaps stay gaps
    let mean = 0, total = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = weight * mean + (1 - weight) * value; total = weight * total + (1 - weight);
      return mean / total;
    });
  };
  const drawCharts = (Plotly) => {
    const boxes = payload.charts.map((chart) => {
      const card = document.createElement("div"), title = document.createElement("h3"), box = document.createElement("div");
      card.className = "card chart"; box.className = "draw"; title.textContent = chart.title;
      card.append(title, box); $("#charts").append(card);
      return box;
    });
    const draw = () => {
      const weight = Number($("#smooth").value), log = $("#log").checked;
      payload.charts.forEach((chart, i) => {
        const traces = [];
        chart.series.forEach((series, j) => {
          const line = SERIES[j % SERIES.length], few = series.y.length < 12;
          const common = { x: series.x, name: series.name, legendgroup: series.name, line: { color: line } };
          if (!few && weight > 0) traces.push({ ...common, y: series.y, mode: "lines", opacity: .28, hoverinfo: "skip", showlegend: false, line: { color: line, width: 1 } });
          traces.push({ ...common, y: few ? series.y : smooth(series.y, weight), mode: few ? "lines+markers" : "lines", line: { color: line, width: 2 }, marker: { color: line, size: 6 }, hovertemplate: "%{y:.4g}<extra>" + (chart.series.length > 1 ? "%{fullData.name}" : "") + "</extra>" });
        });
        const last = Math.max(...chart.series.map((series) => series.x.at(-1)));
        const grid = color("--line"), positive = chart.series.every((series) => series.y.every((y) => y === null || y > 0));
        Plotly.react(boxes[i], traces, {
          margin: { l: 52, r: 12, t: 8, b: 34 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent", hovermode: "x unified",
          font: { family: color("--sans"), size: 12, color: color("--soft") }, hoverlabel: { bgcolor: color("--card"), bordercolor: grid, font: { color: color("--ink") } },
          xaxis: { gridcolor: grid, zeroline: false, hoverformat: ",d", tickformat: last >= 10000 ? "~s" : ",d", ...(last < 8 ? { dtick: 1 } : {}) }, yaxis: { gridcolor: grid, zeroline: false, type: log && positive ? "log" : "linear", tickformat: log && positive ? ".1~e" : ".3~g", nticks: 6 },
          showlegend: chart.series.length > 1, legend: { orientation: "h", y: -0.16, x: 0, bgcolor: "transparent" }, uirevision: String(log),
        }, { displayModeBar: false, responsive: true });
      });
    };
    $("#smooth").addEventListener("input", draw); $("#log").addEventListener("change", draw); redraw.push(draw);
    draw();
  };

  // Clouds: two views of the same points that turn together
  const drawClouds = (Plotly) => {
    const clouds = payload.clouds, count = clouds.count;
    const raw = new Uint16Array(bytes(clouds.coord).buffer);
    const axis = (k) => Float32Array.from({ length: count }, (_, i) => clouds.low[k] + clouds.step * raw[3 * i + k]);
    const [x, y, z] = [axis(0), axis(1), axis(2)];
    const colors = clouds.colorings.map(({ rgb }) => { const b = bytes(rgb); return Array.from({ length: count }, (_, i) => `rgb(${b[3 * i]},${b[3 * i + 1]},${b[3 * i + 2]})`); });
    const boxes = $$("[data-cloud]"), selects = $$("[data-coloring]"), cut = $("#cut"), dot = $("#dot");
    selects.forEach((select, i) => {
      clouds.colorings.forEach(({ label }, j) => select.add(new Option(label, j)));
      select.value = Math.min(i, clouds.colorings.length - 1);
    });
    dot.value = Math.min(4, Math.max(2.25, 2.25 * Math.sqrt(15000 / count)));
    const bottom = clouds.low[2], height = Math.max(clouds.top - bottom, 1e-6);
    cut.value = Math.round(1000 * (clouds.cut - bottom) / height);
    const span = (v) => { let low = Infinity, high = -Infinity; for (const value of v) { if (value < low) low = value; if (value > high) high = value; } const pad = .02 * (high - low) + 1e-3; return [low - pad, high + pad]; };
    const ranges = [span(x), span(y), span(z)], sizes = ranges.map(([a, b]) => b - a), scale = 1.75 / Math.hypot(...sizes);
    const start = () => ({ eye: { x: .95, y: -1.05, z: .9 }, center: { x: 0, y: 0, z: -.05 }, up: { x: 0, y: 0, z: 1 } });
    let camera = start();
    const layout = (i) => {
      const hidden = (range) => ({ visible: false, range, autorange: false, showspikes: false });
      return { margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "transparent", showlegend: false, uirevision: "keep",
        scene: { xaxis: hidden(ranges[0]), yaxis: hidden(ranges[1]), zaxis: hidden(ranges[2]), aspectmode: "manual", aspectratio: { x: sizes[0] * scale, y: sizes[1] * scale, z: sizes[2] * scale }, camera, dragmode: "orbit", bgcolor: color("--code"), uirevision: "keep" } };
    };
    const draw = () => {
      const limit = bottom + height * cut.value / 1000;
      $("#cut-out").textContent = `${(limit - bottom).toFixed(2)} m`;
      const shown = []; for (let i = 0; i < count; i++) if (z[i] <= limit + 1e-4) shown.push(i);
      const pick = (values) => shown.map((i) => values[i]);
      const [px, py, pz] = [pick(x), pick(y), pick(z)];
      boxes.forEach((box, i) => Plotly.react(box, [{ type: "scatter3d", mode: "markers", x: px, y: py, z: pz, hoverinfo: "skip", marker: { size: Number(dot.value), color: pick(colors[selects[i].value]), opacity: 1, line: { width: 0 } } }], layout(i), { displayModeBar: false, responsive: true, scrollZoom: true }));
    };
    draw();
    let following = false;
    boxes.forEach((box, i) => {
      const follow = (event) => {
        const moved = event?.["scene.camera"] ?? box._fullLayout?.scene?._scene?.getCamera?.();
        if (!moved || following) return;
        camera = moved; following = true;
        Promise.all(boxes.filter((_, j) => j !== i).map((other) => Plotly.relayout(other, { "scene.camera": moved }))).finally(() => { following = false; });
      };
      box.on("plotly_relayouting", follow); box.on("plotly_relayout", follow);
    });
    selects.forEach((select) => select.addEventListener("change", draw));
    [cut, dot].forEach((input) => input.addEventListener("input", draw));
    $("#home").addEventListener("click", () => { camera = start(); boxes.forEach((box) => Plotly.relayout(box, { "scene.camera": camera })); });
    redraw.push(draw);
  };

  if ($("#plotly")) loadPlotly().then((Plotly) => {
    if (payload.charts.length) try { drawCharts(Plotly); } catch (error) { fail(error, $("#curves")); }
    if (payload.clouds.count) try { drawClouds(Plotly); } catch (error) { fail(error, $("#space")); }
  }).catch((error) => fail(error));
})();
