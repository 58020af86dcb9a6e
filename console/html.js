// Preact with templates instead of JSX, so that nothing has to be built.

import htm from "./vendor/htm.mjs";
import { h } from "./vendor/preact.mjs";

export { createContext, render } from "./vendor/preact.mjs";
export {
  useCallback, useContext, useEffect, useId, useLayoutEffect, useMemo, useRef, useState,
} from "./vendor/hooks.mjs";

export const html = htm.bind(h);
