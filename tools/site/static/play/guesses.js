/* The questions that a reader answers before the trace does. Every number in an answer is computed when it is shown. */
"use strict";

/** The questions. settings: what the page is set to when the question is asked, then what it shows with the answer.
 *
 * measure(lab): the number that the options are about; options: [label, from, to], from <= number < to
 * tell(number, lab): the answer
 */
const GUESSES = (() => {
  const percent = (share) => `${Math.round(100 * share)} %`;
  const less = (share) => (share < 0 ? `${percent(-share)} more` : `${percent(share)} less`);
  const roomy = (lab) => lab.mostRows;
  const tight = (lab) => lab.fewestRows + 64;
  const medium = (lab) => lab.fewestRows + 256;

  return [
    {
      ask: () =>
        "Memory keeps the neurons of the last 5 tokens, and has room for all of them. Of the neurons that a token " +
        "needs, how many must still be read from flash?",
      settings: (lab) => [{ k: 5, rows: roomy(lab) }, { k: 5, rows: roomy(lab) }],
      measure: (lab) => lab.bytes("window", 5, roomy(lab)) / lab.neededBytes,
      options: [["nearly all", 0.8, 9], ["about two thirds", 0.5, 0.8], ["about a third", 0.2, 0.5], ["nearly none", -9, 0.2]],
      tell: (share) =>
        `${percent(share)}. Text goes on with what it was about, so much of what a token needs was needed just before. ` +
        "Press play, and watch where the reads rise: there the text turns to something new.",
    },
    {
      ask: (lab) =>
        `Now memory is small: ${tight(lab)} rows, little more than the largest token needs alone. The window grows from ` +
        "5 tokens to 16. What becomes of the bytes?",
      settings: (lab) => [{ k: 5, rows: tight(lab) }, { k: 16, rows: tight(lab) }],
      measure: (lab) => 1 - lab.bytes("window", 16, tight(lab)) / lab.bytes("window", 5, tight(lab)),
      options: [["they halve", 0.35, 9], ["they fall by a fifth", 0.1, 0.35], ["they hardly change", -0.1, 0.1], ["they rise", -9, -0.1]],
      tell: (share) =>
        `The longer window reads ${less(share)}. Where memory is full, the oldest tokens leave early, whatever k allows: ` +
        "then memory decides, and not k. The chart at the right shows from which k on the line is flat.",
    },
    {
      ask: (lab) =>
        "A window drops whole tokens. LRU drops single neurons, always those that were used least recently, and so its " +
        `rows are never free. Both get ${medium(lab)} rows. How much less does LRU read?`,
      settings: (lab) => [{ k: 16, rows: medium(lab) }, { k: 16, rows: medium(lab) }],
      measure: (lab) => 1 - lab.bytes("lru", 0, medium(lab)) / lab.bytes("window", 16, medium(lab)),
      options: [["more than half less", 0.5, 9], ["a quarter to a half less", 0.25, 0.5], ["less than a quarter less", 0.02, 0.25], ["not less", -9, 0.02]],
      tell: (share) =>
        `${less(share)}. Recency is what both go by, and a window that fills its memory comes close to LRU. But LRU must ` +
        "remember when each neuron was used, and all that lies in memory is multiplied.",
    },
    {
      ask: () =>
        "Belady's policy knows the whole text in advance, and drops what is needed again last. No policy can read less in " +
        "the same memory. How far below LRU does it come?",
      settings: (lab) => [{ k: 16, rows: medium(lab) }, { k: 16, rows: medium(lab) }],
      measure: (lab) => 1 - lab.bytes("belady", 0, medium(lab)) / lab.bytes("lru", 0, medium(lab)),
      options: [["less than a tenth", -9, 0.1], ["a tenth to a quarter", 0.1, 0.25], ["a quarter to a half", 0.25, 0.5], ["more than half", 0.5, 9]],
      tell: (share) =>
        `${less(share)} than LRU. Nobody knows the text in advance. But so much is left to whoever guesses better than ` +
        "“what was used just now”. What would you go by: how often a neuron fires? How surely? Which neurons fire together?",
    },
  ];
})();

/** The questions, one after another. */
class Guessing {
  constructor(page) {
    this.page = page;
    this.layer = Number(byId("layer").value);
    byId("guess-next").addEventListener("click", () => this.ask((this.number + 1) % GUESSES.length));
    this.ask(0);
  }

  ask(number) {
    this.number = number;
    const { lab } = this.page;
    const guess = GUESSES[number];
    this.page.pause();
    this.page.chooseLayer(this.layer); // on which the answers were written
    this.page.set(guess.settings(lab)[0]);
    this.page.hide(true);
    byId("guess-number").textContent = `Guess ${number + 1} of ${GUESSES.length}`;
    byId("guess-ask").textContent = guess.ask(lab);
    byId("guess-answer").textContent = "";
    byId("guess-next").hidden = true;
    byId("guess-options").replaceChildren(...guess.options.map(([label, from, to]) => {
      const button = document.createElement("button");
      button.textContent = label;
      button.addEventListener("click", () => this.answer(button));
      button.dataset.from = from;
      button.dataset.to = to;
      return button;
    }));
  }

  answer(chosen) {
    const guess = GUESSES[this.number];
    const { lab } = this.page;
    this.page.chooseLayer(this.layer);
    const value = guess.measure(lab);
    const holds = (button) => Number(button.dataset.from) <= value && value < Number(button.dataset.to);
    for (const button of byId("guess-options").children) {
      button.disabled = true;
      button.className = holds(button) ? "right" : button === chosen ? "wrong" : "";
    }
    this.page.set(guess.settings(lab)[1]);
    this.page.hide(false);
    byId("guess-answer").textContent = `${holds(chosen) ? "Yes." : "No."} ${guess.tell(value, lab)}`;
    byId("guess-next").hidden = false;
    byId("guess-next").textContent = this.number + 1 < GUESSES.length ? "Next guess" : "Once more from the first";
  }
}
