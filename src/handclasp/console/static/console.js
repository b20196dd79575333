// What a script adds to pages that work without one: pictures, copying, keys, what is said while and after something is asked for, and the
// mark by which the style sheet knows it is here.
(function () {
  "use strict";
  var root = document.documentElement;
  root.classList.add("js");

  // --- pictures ---------------------------------------------------------------------------------------------------------------------

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
      useUTC: true, // as every time on the page
      color: palette,
      textStyle: { color: soft, fontFamily: "system-ui, sans-serif" },
      aria: { enabled: false },
      grid: { left: 8, right: 12, top: 34, bottom: 8, containLabel: true },
      legend: { top: 0, left: 0, itemWidth: 14, itemHeight: 9, textStyle: { color: soft } },
      // Drawn on the canvas: the usual box is HTML with inline styles, which the page's policy forbids.
      tooltip: { trigger: "axis", renderMode: "richText", confine: true },
      xAxis: { type: "time", axisLine: { lineStyle: { color: line } }, axisLabel: { color: soft, hideOverlap: true }, splitLine: { show: false } },
      yAxis: { type: "value", minInterval: 1, axisLabel: { color: soft }, splitLine: { lineStyle: { color: line } } },
      series: data.series.map(function (one) {
        return { name: one.name, type: "bar", stack: one.stack, data: one.points, barMaxWidth: 22 };
      })
    };
  }

  function each(scope, selector, act) {
    scope.querySelectorAll(selector).forEach(act);
  }

  function draw(scope) {
    if (!window.echarts) { return; }
    each(scope, "[data-chart]", function (place) {
      var chart = window.echarts.getInstanceByDom(place) || window.echarts.init(place, null, { renderer: "canvas" });
      chart.setOption(options(JSON.parse(place.dataset.chart)), true);
    });
  }

  function drawn(scope, act) {
    if (!window.echarts) { return; }
    each(scope, "[data-chart]", function (place) {
      var chart = window.echarts.getInstanceByDom(place);
      if (chart) { act(chart); }
    });
  }

  // --- what is on a page ------------------------------------------------------------------------------------------------------------

  var zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

  function localise(scope) {
    if (!zone || zone === "UTC") { return; }
    each(scope, "time[datetime]", function (one) {
      var at = new Date(one.dateTime);
      if (!isNaN(at) && one.title.indexOf("\n") < 0) { one.title += "\n" + at.toLocaleString("sv-SE") + " " + zone; }
    });
  }

  function copying(scope) {
    each(scope, ".copy[hidden]", function (button) { button.hidden = !navigator.clipboard; });
  }

  function prepare(scope) { draw(scope); copying(scope); localise(scope); }

  function say(text) { document.getElementById("aloud").textContent = text; }

  function trouble(text) {
    var place = document.getElementById("trouble");
    if (place.textContent !== text) { place.textContent = text; }
    place.hidden = !text;
  }

  // --- pointing and typing ----------------------------------------------------------------------------------------------------------

  document.addEventListener("click", function (event) {
    var button = event.target.closest(".copy");
    if (button) {
      navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent).then(function () {
        button.textContent = "Copied";
        say("Copied");
        setTimeout(function () { button.textContent = "Copy"; }, 1500);
      }, function () { say("It could not be copied"); });
      return;
    }
    each(document, ".acts details.act[open]", function (open) {
      if (!open.contains(event.target)) { open.open = false; }
    });
  });

  document.addEventListener("keydown", function (event) {
    var at = event.target;
    if (event.key === "Escape") {
      var open = at.closest("details.act[open]") || document.querySelector(".acts details.act[open]");
      if (open) {
        open.open = false;
        open.querySelector("summary").focus();
      } else if (location.hash === "#nav") { location.hash = "#main"; }
    } else if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !at.closest("input, textarea, select, [contenteditable]")) {
      var search = document.querySelector("main input[type=search]") || document.querySelector(".find input");
      if (search) {
        event.preventDefault();
        search.focus();
        search.select();
      }
    }
  });

  // What is typed in a search is asked for at once; leaving the field afterwards is no other search, and must not take away what is pressed.
  document.addEventListener("change", function (event) {
    if (event.target.type === "search") { event.stopPropagation(); }
  }, true);

  // A form is sent once: whoever presses twice does not revoke twice, and has no second token.
  document.addEventListener("submit", function (event) {
    var form = event.target;
    if (form.method !== "post" || event.defaultPrevented) { return; }
    if (form.dataset.sent) { event.preventDefault(); return; }
    form.dataset.sent = "1";
    if (event.submitter) { event.submitter.setAttribute("aria-busy", "true"); }
    root.classList.add("asking");
  });
  window.addEventListener("pageshow", function () {
    root.classList.remove("asking");
    each(document, "form[data-sent]", function (form) {
      delete form.dataset.sent;
      each(form, "[aria-busy]", function (button) { button.removeAttribute("aria-busy"); });
    });
  });

  // --- parts of a page that come anew -----------------------------------------------------------------------------------------------

  function byItself(event) { return "X-Handclasp-Auto" in event.detail.requestConfig.headers; }

  var asking = 0, held = null;

  document.addEventListener("htmx:beforeRequest", function (event) {
    if (!byItself(event)) {
      asking += 1;
      root.classList.add("asking");
    } else if (document.hidden) { event.preventDefault(); } // nobody looks
  });
  document.addEventListener("htmx:afterRequest", function (event) {
    if (!byItself(event)) {
      asking = Math.max(asking - 1, 0);
      root.classList.toggle("asking", asking > 0);
    }
    var status = event.detail.xhr.status;
    if (status >= 200 && status < 400) { trouble(""); }
  });
  ["htmx:sendError", "htmx:timeout"].forEach(function (name) {
    document.addEventListener(name, function (event) {
      var again = byItself(event) ? "This page keeps trying." : "Try again.";
      trouble("The server does not answer: what you see is from before. " + again);
    });
  });
  document.addEventListener("htmx:beforeSwap", function (event) {
    var target = event.detail.target, active = document.activeElement;
    if (event.detail.xhr.status >= 400 && byItself(event)) { // what is there stays, and is asked for again
      event.detail.shouldSwap = false;
      trouble("The server could not say anything new (" + event.detail.xhr.status + "): what you see is from before. This page keeps trying.");
      return;
    }
    drawn(target, function (chart) { chart.dispose(); });
    held = active && target.contains(active) ? { href: active.getAttribute("href"), id: active.id } : null;
  });
  document.addEventListener("htmx:afterSwap", function (event) {
    var target = event.detail.target, count = target.querySelector(".count");
    prepare(target);
    if (!byItself(event) && count) { say(count.textContent); }
    if (held && !target.contains(document.activeElement)) {
      var again = held.href && Array.prototype.find.call(target.querySelectorAll("a"), function (one) { return one.getAttribute("href") === held.href; });
      if (!again) { target.tabIndex = -1; }
      (again || target).focus({ preventScroll: true });
    }
    held = null;
  });

  // What is beside a list comes with it. While it is the same, or was just pressed, it stays: somebody may be about to press it.
  document.addEventListener("htmx:oobBeforeSwap", function (event) {
    var there = event.detail.target, fresh = event.detail.fragment.firstElementChild;
    event.detail.shouldSwap = !there.querySelector("[data-sent]") && fresh.innerHTML !== there.innerHTML;
  });

  window.addEventListener("resize", function () { drawn(document, function (chart) { chart.resize(); }); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () { draw(document); });
  prepare(document);

  // A page that may be shown once has the address of the page that stays: loaded again, nothing is made twice.
  var stays = document.querySelector("[data-address]");
  if (stays) { history.replaceState(null, "", stays.dataset.address); }
})();
