// Asking the server.

export const byId = (id) => document.getElementById(id);

/** The response; what is wrong with the request is thrown as an error with the server's message. */
export async function ask(path, body, signal) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, { ...options, signal }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the server does not answer; is it still running?");
  });
  if (!response.ok) throw new Error((await response.json().catch(() => ({ error: "the server failed; its terminal says how" }))).error);
  return response;
}

export const json = async (...request) => (await ask(...request)).json();

/** Runs of one kind: a new one ends the one before. An error is shown in `place` until one of this kind succeeds. */
export function latest(place, work) {
  let current = new AbortController();
  let shown = "";
  return async (...given) => {
    current.abort();
    const { signal } = (current = new AbortController());
    try {
      const done = await work(signal, ...given);
      if (!signal.aborted && place.textContent === shown) place.textContent = ""; // or it is of another kind
      return done;
    } catch (error) {
      if (!signal.aborted) place.textContent = shown = error.message;
    }
  };
}

/** Calls `work` once its caller has been quiet for some time; `cancel` takes back what is waiting. */
export function soon(work, milliseconds) {
  let timer;
  const later = (...given) => {
    later.cancel();
    timer = setTimeout(work, milliseconds, ...given);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}
