// The rules of a namespace, and other namespaces.

import { get, inNamespace, send } from "./api.js";
import { html, useRef, useState } from "./html.js";
import { Confirm, Dialog, Failure, Field, Loaded, may, moment, Panel, Select, useHere, useLoad, useSubmit, wrongIn } from "./ui.js";

const MEMBERSHIPS = [["one_group", "In one group at most"], ["one_per_group", "In each group once"], ["one_per_invite", "By each invite once"], ["unlimited", "Any number"]];
const CASES = [["insensitive", "Whatever the case"], ["sensitive", "Only itself"], ["lenient", "Whatever the case, dashes, look-alikes"]];
const DURABILITIES = [["gate", "Redis has it"], ["replicated", "Replicas of Redis have it"], ["ledger", "SQL has committed it"]];
const DETAILS = [["full", "What is the matter"], ["coarse", "Nothing of a code that can not be used"]];
const RATES = { rate_user: "A user's attempts", rate_ip: "Attempts from an address", rate_code: "Attempts on a code", rate_namespace: "All attempts", rate_guess: "Codes that do not exist" };
const inWords = (pairs, value) => pairs.find(([name]) => name === value)?.[1] ?? value;

function Rules({ settings, changed }) {
  const { ns } = useHere();
  const form = useRef();
  const [saved, setSaved] = useState(false);
  const { busy, problem, submit } = useSubmit(async () => {
    const fields = new FormData(form.current);
    const patch = { durability: fields.get("durability"), error_detail: fields.get("error_detail") };
    for (const name of Object.keys(RATES)) patch[name] = fields.get(name).trim() || null;
    await send("PATCH", inNamespace(ns), patch, { "If-Match": `"${settings.revision}"` });
    setSaved(true);
    changed();
  });
  return html`<form ref=${form} class="body" onSubmit=${submit} onInput=${() => setSaved(false)}>
    <div class="pair">
      <${Select} label="Answers promise at least" name="durability" value=${settings.durability} options=${DURABILITIES} error=${wrongIn(problem, "durability")} />
      <${Select} label="Refusals tell" name="error_detail" value=${settings.error_detail} options=${DETAILS} error=${wrongIn(problem, "error_detail")} />
    </div>
    <fieldset><legend>Rate limits, as times/seconds; empty is off</legend>
      <div class="triple">${Object.entries(RATES).map(([name, label]) => html`<${Field} label=${label} name=${name} placeholder="off" pattern="[0-9]+/[0-9]+" defaultValue=${settings[name] ?? ""} error=${wrongIn(problem, name)} />`)}</div>
    </fieldset>
    <${Failure} problem=${problem} />
    <footer class="actions"><button class="primary" disabled=${busy}>Save</button><span role="status" class="fine">${saved ? "Saved. It counts from now on." : ""}</span></footer>
  </form>`;
}

function Make({ close, done }) {
  const [fields, set] = useState({ name: "", membership: "one_group", code_case: "insensitive", code_check: false });
  const { busy, problem, submit } = useSubmit(async () => {
    const { name, ...rules } = fields;
    await send("PUT", inNamespace(name.trim()), rules, {});
    done(name.trim());
  });
  const change = (name) => (event) => set({ ...fields, [name]: event.target.type === "checkbox" ? event.target.checked : event.target.value });
  return html`<${Dialog} title="New namespace" close=${close}>
    <form onSubmit=${submit}>
      <${Field} label="Name" required pattern="[a-z0-9\\-]{1,63}" hint="1 to 63 of a-z, 0-9 and -" value=${fields.name} onInput=${change("name")} autofocus />
      <${Select} label="A user may be" value=${fields.membership} options=${MEMBERSHIPS} onChange=${change("membership")} error=${wrongIn(problem, "membership")} />
      <${Select} label="The same code is" value=${fields.code_case} options=${CASES} onChange=${change("code_case")} error=${wrongIn(problem, "code_case")} />
      <label class="check"><input type="checkbox" checked=${fields.code_check} onChange=${change("code_check")} /> Codes end with a check character</label>
      <p class="fine">These are fixed from then on; rate limits and the rest can be changed.</p>
      <${Failure} problem=${problem} />
      <footer><button type="button" onClick=${close}>Cancel</button><button class="primary" disabled=${busy}>Make it</button></footer>
    </form>
  <//>`;
}

export function Settings() {
  const { ns, own, reloadNamespaces, goTo } = useHere();
  const [open, setOpen] = useState(null);
  const loaded = useLoad((signal) => get(inNamespace(ns), signal), [ns]);
  const close = () => setOpen(null);
  return html`
    <div class="head"><h1>Settings of ${ns}</h1>${may(own, "admin") && html`<div class="actions">
      <button type="button" onClick=${() => setOpen("make")}>New namespace</button>
      ${loaded.data && !loaded.data.archived_at && html`<button type="button" class="danger" onClick=${() => setOpen("archive")}>Archive</button>`}</div>`}</div>
    <${Loaded} of=${loaded} rows=${6}>${(settings) => html`
      ${settings.archived_at && html`<p class="note warn">Archived since ${moment(settings.archived_at)}: it answers nobody, and lists still show what there was.</p>`}
      <${Panel} title="Rules">
        ${may(own, "manage") && !settings.archived_at ? html`<${Rules} key=${settings.revision} settings=${settings} changed=${loaded.reload} />`
          : html`<ul class="facts two">
            <li><span>Answers promise at least</span><span>${inWords(DURABILITIES, settings.durability)}</span></li>
            <li><span>Refusals tell</span><span>${inWords(DETAILS, settings.error_detail)}</span></li>
            ${Object.entries(RATES).map(([name, label]) => html`<li><span>${label}</span><span>${settings[name] ?? "off"}</span></li>`)}</ul>`}
      <//>
      <${Panel} title="Fixed when it was made">
        <ul class="facts two">
          <li><span>A user may be</span><span>${inWords(MEMBERSHIPS, settings.membership)}</span></li>
          <li><span>The same code is</span><span>${inWords(CASES, settings.code_case)}</span></li>
          <li><span>Check character</span><span>${settings.code_check ? "yes" : "no"}</span></li>
          <li><span>Made</span><span>${moment(settings.created_at)}</span></li>
          <li><span>Last changed</span><span>${moment(settings.updated_at)}, revision ${settings.revision}</span></li>
        </ul>
      <//>`}<//>
    ${open === "make" && html`<${Make} close=${close} done=${(name) => (reloadNamespaces(), goTo(name, "settings"))} />`}
    ${open === "archive" && html`<${Confirm} title=${`Archive ${ns}`} verb="Archive it" close=${close} act=${async () => (await send("DELETE", inNamespace(ns)), loaded.reload())}>
      <p>Nobody redeems, joins or changes anything in <b>${ns}</b> any more. The ledger keeps all that it had, and making a namespace of this name brings it back.</p><//>`}`;
}
