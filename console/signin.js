// The first screen: asks for a key.

import { signIn } from "./api.js";
import { html, useState } from "./html.js";
import { Failure, Field, useSubmit } from "./ui.js";

export function SignIn({ told, done }) {
  const [key, setKey] = useState("");
  const [keep, setKeep] = useState(true);
  const { busy, problem, submit } = useSubmit(async () => done(await signIn(key, keep)));
  return html`<main class="sheet">
    <form class="panel" onSubmit=${submit}>
      <h1><img src="/console/icon.svg" alt="" width="28" height="28" /> redeemer</h1>
      ${told && !problem && html`<p class="note warn" role="status">${told}</p>`}
      <${Field} label="API key" type="password" name="key" required autofocus value=${key}
        placeholder="rdm_…" onInput=${(event) => setKey(event.target.value)}
        hint="A key with the role read, manage or admin. The first start has written one into admin.key in the data directory." />
      <label class="check"><input type="checkbox" checked=${keep} onChange=${(event) => setKeep(event.target.checked)} />
        Stay signed in until this tab is closed</label>
      ${problem && html`<${Failure} problem=${told401(problem)} />`}
      <button class="primary" disabled=${busy}>${busy ? "Signing in…" : "Sign in"}</button>
    </form>
  </main>`;
}

// What the service says to a program, said to a person.
function told401(problem) {
  if (problem.status === 401) problem.message = "This key opens nothing. It may have a typing mistake, have been revoked, or have ended.";
  if (problem.status === 403) problem.message = "This key may only redeem. The console needs one with the role read, manage or admin.";
  return problem;
}
