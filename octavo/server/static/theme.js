// The theme before anything is drawn, so this is no module: the system's until a person chooses, and then that.
"use strict";
(() => {
  const KEY = "octavo.theme";
  const read = () => {
    try {
      const chosen = JSON.parse(localStorage.getItem(KEY));
      return chosen === "light" || chosen === "dark" ? chosen : "system";
    } catch {
      return "system"; // no storage, or not ours
    }
  };
  const show = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const select = document.getElementById("theme");
    if (select) select.value = theme;
  };
  const choose = (theme) => {
    try {
      if (theme === "system") localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, JSON.stringify(theme));
    } catch {
      /* it holds for this tab */
    }
    show(theme);
  };
  show(read());
  addEventListener("storage", (event) => {
    if (event.key === KEY || event.key === null) show(read());
  });
  addEventListener("DOMContentLoaded", () => {
    show(document.documentElement.dataset.theme ?? "system");
    document.getElementById("theme")?.addEventListener("change", (event) => choose(event.target.value));
  });
})();
