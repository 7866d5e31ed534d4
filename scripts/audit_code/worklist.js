"use strict";
// Answers as CSV; names are those of suspects.csv, in which no cell can be run as a formula.
const rows = () => [...document.querySelectorAll("table.list tbody tr")];
const answerOf = (row) => row.querySelector("input:checked")?.value ?? "";
const quoted = (text) => '"' + text.replaceAll('"', '""') + '"';
const count = () => rows().filter((row) => answerOf(row)).length;
document.addEventListener("change", () => {
  document.getElementById("count").textContent = `${count()} of ${rows().length} answered`;
});
document.getElementById("save").addEventListener("click", () => {
  const lines = rows().filter((row) => answerOf(row)).map((row) =>
    [row.dataset.image, row.dataset.class, row.dataset.given, answerOf(row)].map(quoted).join(","));
  const text = "\ufeff" + ["image,class,given,answer", ...lines, ""].join("\r\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
});
window.addEventListener("beforeunload", (event) => {
  if (count()) event.preventDefault();
});
