"use strict";
// Shows one pair after the other. The command keeps the answers, so that a reload continues where it was.
const byId = (id) => document.getElementById(id);
const GRADES = ["not relevant", "partly", "relevant"];
const grades = [...document.querySelectorAll("[data-grade]")];
let state = null;
let busy = false;

const alertUser = (text) => {
  byId("alert").textContent = text;
  byId("alert").hidden = !text;
};

function show(said = "") {
  const judging = state.place < state.pairs && !state.finished;
  const left = state.pairs - state.answered;
  byId("count").textContent = judging ? `Pair ${state.answered + 1} of ${state.pairs}` : `${state.answered} of ${state.pairs} pairs`;
  byId("progress").max = state.pairs;
  byId("progress").value = state.answered;
  for (const id of ["pair", "grades", "skip"]) byId(id).hidden = !judging;
  byId("end").hidden = judging;
  document.querySelector("footer").hidden = state.finished;
  byId("undo").disabled = state.answered === 0;
  byId("finish").classList.toggle("main", !judging);
  grades.forEach((button) => button.classList.remove("chosen"));
  // texts are set as text, so that markup in them stays text
  if (judging) {
    const which = state.passages === 1 ? "Passage" : `Passage ${state.passage} of ${state.passages} for this question`;
    byId("question").textContent = state.question;
    byId("which").textContent = which;
    byId("title").textContent = state.title;
    byId("text").textContent = state.text;
    said += ` ${byId("count").textContent}.`;
  } else {
    byId("heading").textContent = state.finished ? "Saved. You can close this page." : "All pairs are judged.";
    byId("counts").replaceChildren(
      ...[...GRADES, "skipped"].flatMap((name, place) => {
        const [term, value] = [document.createElement("dt"), document.createElement("dd")];
        term.textContent = name[0].toUpperCase() + name.slice(1);
        value.textContent = state.counts[place];
        return [term, value];
      }),
    );
    byId("next").textContent = state.finished
      ? "The judgements are written as a BEIR folder (queries.jsonl, qrels/test.tsv). The terminal shows how the systems compare by them, and the commands for more." +
        (left ? ` ${left} of the pairs are not judged; run the same command again to continue.` : "")
      : "Finish writes the judgements and compares the systems. Undo goes back to the last pair.";
  }
  byId("said").textContent = said;
  (judging ? byId("question") : byId("heading")).focus({ preventScroll: true });
  scrollTo(0, 0);
}

async function request(path, body) {
  if (busy) return;
  busy = true;
  try {
    const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const response = await fetch(path, options);
    if (!response.ok && response.status !== 409) throw new Error(response.status);
    const before = state;
    state = await response.json();
    alertUser("");
    const undone = before && state.answered < before.answered;
    show(!before ? "" : undone ? "Undone." : path === "answer" ? "Saved." : "");
  } catch (error) {
    const full = error.message === "500";
    alertUser(
      full
        ? "The answer could not be saved. The terminal says why."
        : "The command has ended or cannot be reached. All answers so far are saved; run stzoo judge again to continue.",
    );
    grades.forEach((button) => button.classList.remove("chosen"));
  } finally {
    busy = false;
  }
}

function answer(grade) {
  if (busy || !state || state.finished || state.place >= state.pairs) return;
  grades.forEach((button) => button.classList.toggle("chosen", Number(button.dataset.grade) === grade));
  request("answer", { place: state.place, grade });
}

const undo = () => state && !state.finished && state.answered > 0 && request("undo", {});

grades.forEach((button) => button.addEventListener("click", () => answer(Number(button.dataset.grade))));
byId("skip").addEventListener("click", () => answer(null));
byId("undo").addEventListener("click", undo);
byId("finish").addEventListener("click", () => request("finish", {}));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const digit = /^(?:Digit|Numpad)([012])$/.exec(event.code); // on keyboards whose digits need Shift too
  const key = digit ? digit[1] : event.key.toLowerCase();
  if ("012".includes(key) && key) answer(Number(key));
  else if (key === "s") answer(null);
  else if (key === "u" || key === "backspace") undo();
  else return;
  event.preventDefault();
});

request("state");
