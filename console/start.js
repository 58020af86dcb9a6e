// The frame: who is signed in, which namespace, which screen. Where one is stands in the fragment of the address:
// #/<namespace>/<screen>/<id>?<filters>.

import { get, hasKey, ownKey, path, signOut, whenSignedOut, withQuery } from "./api.js";
import { Audit } from "./audit.js";
import { Batches } from "./batches.js";
import { html, render, useEffect, useMemo, useState } from "./html.js";
import { Invite } from "./invite.js";
import { Invites } from "./invites.js";
import { Limits } from "./limits.js";
import { Live } from "./live.js";
import { Members } from "./members.js";
import { Overview } from "./overview.js";
import { Settings } from "./settings.js";
import { SignIn } from "./signin.js";
import { Failure, Here, Loading, may, useLoad } from "./ui.js";
import { Webhooks } from "./webhooks.js";

// Each with the role that it takes; one shows a thing of those that show lists.
const SCREENS = [
  { name: "overview", title: "Overview", role: "read", show: Overview },
  { name: "invites", title: "Invites", role: "read", show: Invites, one: Invite },
  { name: "batches", title: "Batches", role: "manage", show: Batches, one: Batches },
  { name: "live", title: "Live", role: "read", show: Live },
  { name: "members", title: "Members", role: "read", show: Members },
  { name: "limits", title: "Rate limits", role: "read", show: Limits },
  { name: "webhooks", title: "Webhooks", role: "manage", show: Webhooks, one: Webhooks },
  { name: "audit", title: "Consistency and audit", role: "manage", show: Audit },
  { name: "settings", title: "Settings", role: "read", show: Settings },
];

const THEME = "redeemer.theme";
const THEMES = { system: "System", light: "Light", dark: "Dark" };

function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  dispatchEvent(new Event("themechange"));
}

function readPlace() {
  const [route, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [ns, screen, id] = route.split("/").map(decodeURIComponent);
  return { ns, screen, id, query: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

const link = (ns, screen, id, query = {}) => "#" + withQuery(path(...[ns, screen, id].filter((part) => part !== undefined && part !== null)), query);

function usePlace() {
  const [place, setPlace] = useState(readPlace);
  useEffect(() => {
    const moved = () => setPlace(readPlace());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  return place;
}

function ThemeSwitch() {
  const [theme, choose] = useState(localStorage.getItem(THEME) ?? "system");
  useEffect(() => {
    localStorage.setItem(THEME, theme);
    setTheme(theme);
  }, [theme]);
  return html`<label class="quiet"><span class="hidden">Colours</span>
    <select value=${theme} onChange=${(event) => choose(event.target.value)}>
      ${Object.entries(THEMES).map(([value, text]) => html`<option value=${value} selected=${value === theme}>${text}</option>`)}
    </select>
  </label>`;
}

function Frame({ own, leave }) {
  const place = usePlace();
  const known = useLoad((signal) => get("/v1/namespaces?limit=1000", signal), []);
  const names = known.data?.data.map(({ name }) => name);
  const ns = place.ns || names?.find((name) => name === "default") || names?.[0] || own.namespaces?.[0] || "default";
  const screens = SCREENS.filter(({ role }) => may(own, role));
  const screen = screens.find(({ name }) => name === place.screen) ?? screens[0];
  const here = useMemo(
    () => ({
      own,
      ns,
      screen: screen.name,
      link: (name, id, query) => link(ns, name, id, query),
      go: (name, id, query) => (location.hash = link(ns, name, id, query)),
      goTo: (ns, name) => (location.hash = link(ns, name)),
      // Filters replace each other in the history.
      filter: (query) => location.replace(link(ns, screen.name, place.id, query)),
      reloadNamespaces: known.reload,
    }),
    [own, ns, screen.name, place.id],
  );
  useEffect(() => {
    document.title = `${screen.title} · ${ns} · redeemer`;
  }, [screen, ns]);
  useEffect(() => {
    if (!place.ns && names) location.replace(link(ns, screen.name));
  }, [ns, place.ns, names === undefined]);
  if (!names && !known.problem) return html`<main class="sheet"><${Loading} /></main>`;
  return html`<${Here.Provider} value=${here}>
    <div class="frame">
      <a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.getElementById("main").focus())}>To the content</a>
      <header class="side"><div>
        <a class="brand" href=${link(ns, "overview")}><img src="/console/icon.svg" alt="" width="22" height="22" /> <span>redeemer</span></a>
        <label class="namespace"><span>Namespace</span>
          <select value=${ns} onChange=${(event) => (location.hash = link(event.target.value, screen.name))}>
            ${(names?.includes(ns) ? names : [ns, ...(names ?? [])]).map((name) => html`<option value=${name} selected=${name === ns}>${name}</option>`)}
          </select>
        </label>
        <nav aria-label="Screens">
          ${screens.map(({ name, title }) => html`<a href=${link(ns, name)} aria-current=${name === screen.name ? "page" : undefined}>${title}</a>`)}
        </nav>
        <div class="who">
          <span title=${`key ${own.id}`}><strong>${own.name}</strong> <span class="fine">${own.role}</span></span>
          <span class="actions"><${ThemeSwitch} /><button type="button" class="small" onClick=${leave}>Sign out</button></span>
        </div>
      </div></header>
      <main id="main" tabindex="-1">
        <${Failure} problem=${known.problem} retry=${known.reload} />
        <${place.id && screen.one ? screen.one : screen.show} key=${`${ns}/${screen.name}/${place.id ?? ""}`} id=${place.id} query=${place.query} />
      </main>
    </div>
  <//>`;
}

function Console() {
  const [own, setOwn] = useState(null);
  const [told, setTold] = useState("");
  const [problem, setProblem] = useState(null);
  const enter = (own) => (setTold(""), setProblem(null), setOwn(own));
  const leave = (why) => {
    signOut();
    setProblem(null);
    setOwn(null);
    setTold(why);
  };
  whenSignedOut(() => leave("Your key opens nothing any more. Sign in again."));
  // A page that was loaded anew has the key of the tab.
  const resume = () => ownKey().then(enter, (problem) => (problem.status === 0 || problem.isRetryable ? setProblem(problem) : leave(problem.message)));
  useEffect(() => {
    if (hasKey()) resume();
  }, []);
  if (own) return html`<${Frame} own=${own} leave=${() => leave("")} />`;
  if (!hasKey()) return html`<${SignIn} told=${told} done=${enter} />`;
  return html`<main class="sheet">${problem ? html`<${Failure} problem=${problem} retry=${resume} />` : html`<${Loading} />`}</main>`;
}

setTheme(localStorage.getItem(THEME) ?? "system");
render(html`<${Console} />`, document.getElementById("console"));
