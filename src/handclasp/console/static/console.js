// What a script adds to pages that work without one: pictures, copying, and the mark by which the style sheet knows it is here.
(function () {
  "use strict";
  var root = document.documentElement;
  root.classList.add("js");

  function colour(name) {
    var probe = document.createElement("span");
    probe.className = "probe probe-" + name;
    document.body.appendChild(probe);
    var value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  }

  function options(data) {
    var soft = colour("soft"), line = colour("line"), palette = [colour("accent"), colour("plain"), colour("warn"), colour("bad")];
    return {
      animation: false,
      color: palette,
      textStyle: { color: soft, fontFamily: "system-ui, sans-serif" },
      aria: { enabled: false },
      grid: { left: 8, right: 12, top: 34, bottom: 8, containLabel: true },
      legend: { top: 0, left: 0, itemWidth: 14, itemHeight: 9, textStyle: { color: soft } },
      // Drawn on the canvas: the usual box is HTML with inline styles, which the page's policy forbids.
      tooltip: { trigger: "axis", renderMode: "richText", confine: true },
      xAxis: { type: "time", axisLine: { lineStyle: { color: line } }, axisLabel: { color: soft, hideOverlap: true }, splitLine: { show: false } },
      yAxis: { type: "value", minInterval: 1, axisLabel: { color: soft }, splitLine: { lineStyle: { color: line } } },
      series: data.series.map(function (one, index) {
        var made = { name: one.name, type: one.type || "bar", stack: one.stack, data: one.points, showSymbol: false, step: one.step, barMaxWidth: 22, lineStyle: { width: 2 } };
        if (index === 0 && data.now) {
          made.markLine = { silent: true, symbol: "none", lineStyle: { color: palette[0], type: "solid", width: 1.5 }, label: { formatter: "now", color: soft }, data: [{ xAxis: data.now }] };
        }
        return made;
      })
    };
  }

  function draw(scope) {
    if (!window.echarts) { return; }
    scope.querySelectorAll("[data-chart]").forEach(function (place) {
      var chart = window.echarts.getInstanceByDom(place) || window.echarts.init(place, null, { renderer: "canvas" });
      chart.setOption(options(JSON.parse(place.dataset.chart)), true);
    });
  }

  function resize() {
    if (!window.echarts) { return; }
    document.querySelectorAll("[data-chart]").forEach(function (place) {
      var chart = window.echarts.getInstanceByDom(place);
      if (chart) { chart.resize(); }
    });
  }

  function copying(scope) {
    scope.querySelectorAll(".copy[hidden]").forEach(function (button) {
      if (navigator.clipboard) { button.hidden = false; }
    });
  }

  function prepare(scope) { draw(scope); copying(scope); }

  document.addEventListener("click", function (event) {
    var button = event.target.closest(".copy");
    if (button) {
      navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent).then(function () {
        button.textContent = "Copied";
        setTimeout(function () { button.textContent = "Copy"; }, 1500);
      });
      return;
    }
    document.querySelectorAll(".acts details.act[open]").forEach(function (open) {
      if (!open.contains(event.target)) { open.open = false; }
    });
  });
  document.addEventListener("keydown", function (event) {
    if (event.key === "Escape") {
      document.querySelectorAll(".acts details.act[open]").forEach(function (open) {
        open.open = false;
        open.querySelector("summary").focus();
      });
    }
  });
  document.addEventListener("htmx:afterSwap", function (event) { prepare(event.target); });
  window.addEventListener("resize", resize);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () { draw(document); });
  prepare(document);
})();
