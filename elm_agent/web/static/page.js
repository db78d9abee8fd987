// What a page cannot do by itself: rows of jobs that keep up, a page that waits for long work, keys on the map.
"use strict";

const EVERY = 1000; // milliseconds between two looks

function fill(row, job) {
  for (const part of row.querySelectorAll("[data-text]")) {
    const text = String(job[part.dataset.text]);
    if (part.textContent !== text) part.textContent = text;
  }
  const badge = row.querySelector("[data-kind]");
  if (badge) badge.className = "badge " + job.kind;
  const bar = row.querySelector("progress");
  bar.hidden = job.kind !== "running";
  bar.max = job.steps;
  bar.value = job.done;
  const memory = row.querySelector("[data-memory]");
  memory.hidden = !job.memory;
  memory.href = job.memory_url || "#";
  for (const form of row.querySelectorAll("[data-can]")) {
    form.hidden = !job[form.dataset.can];
    form.action = job.url + "/" + form.dataset.can.slice(4);
  }
}

function keepUp(place) {
  const blank = document.getElementById("job-row");
  const body = place.querySelector("tbody");
  async function look() {
    try {
      const answer = await fetch(place.dataset.poll, { headers: { accept: "application/json" } });
      if (!answer.ok) return; // signed out, or the page is gone: what is shown stays
      const seen = await answer.json();
      const rows = new Map([...place.querySelectorAll("[data-job]")].map((row) => [row.dataset.job, row]));
      for (const job of seen.jobs.slice().reverse()) {
        let row = rows.get(job.id);
        if (!row && blank && body) {
          row = blank.content.firstElementChild.cloneNode(true);
          row.dataset.job = job.id;
          row.querySelector("th a").href = job.url;
          body.prepend(row);
          document.querySelector("[data-none]")?.remove();
        }
        if (row) fill(row, job);
      }
      const status = document.querySelector("[data-unfinished]");
      const words = seen.unfinished.running + " running, " + seen.unfinished.queued + " queued";
      if (status && status.textContent !== words) status.textContent = words;
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // the server does not answer: look again
    } finally {
      setTimeout(look, EVERY);
    }
  }
  setTimeout(look, EVERY);
}

function waitFor(place) {
  async function look() {
    const answer = await fetch(place.dataset.wait).catch(() => null);
    const seen = answer && answer.ok ? await answer.json() : null;
    if (seen && seen.state !== "running") {
      location.reload();
      return;
    }
    const bar = place.querySelector("progress");
    if (bar && seen && seen.total) {
      bar.max = seen.total;
      bar.value = seen.done;
    }
    setTimeout(look, EVERY);
  }
  setTimeout(look, EVERY);
}

function walk(map) {
  const points = [...map.querySelectorAll("a")];
  const told = document.querySelector("[data-point]");
  map.addEventListener("focusin", (event) => {
    const point = event.target.closest("a");
    if (point && told) told.textContent = point.querySelector("title").textContent;
  });
  map.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const here = points.indexOf(document.activeElement);
    if (!way || here < 0) return;
    event.preventDefault();
    points[here].tabIndex = -1;
    const next = points[(here + way + points.length) % points.length];
    next.tabIndex = 0;
    next.focus();
  });
}

document.querySelectorAll("[data-poll]").forEach(keepUp);
document.querySelectorAll("[data-wait]").forEach(waitFor);
document.querySelectorAll("svg.map").forEach(walk);
