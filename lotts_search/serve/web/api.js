// The server's API: lists, and the stream of a search.

/** An answer of the server that is an error, with the name of the field at fault, if it names one. */
export class Refused extends Error {
  constructor(body, status) {
    super(body?.error?.message ?? `the server answered ${status}`);
    this.param = body?.error?.param ?? null;
  }
}

/** Return the list at a path. */
export async function list(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Refused(await json(answer), answer.status);
  return (await answer.json()).data;
}

/**
 * Run a search and yield its events.
 *
 * @param {object} fields of a request; undefined ones are left out.
 * @param {{image: Blob, mask_image?: Blob} | null} files of an edit, null for a generation.
 * @param {AbortSignal} signal closes the connection, which stops the search.
 */
export async function* search(fields, files, signal) {
  const asked = { ...fields, stream: true, events: true };
  const answer = files === null
    ? await fetch("v1/images/generations", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked), signal,
      })
    : await fetch("v1/images/edits", { method: "POST", body: form(asked, files), signal });
  if (!answer.ok) throw new Refused(await json(answer), answer.status);
  for await (const event of events(answer.body)) {
    if (event.type === "error") throw new Refused(event, 500);
    yield event;
  }
}

function form(fields, files) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined) data.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  for (const [name, file] of Object.entries(files)) data.append(name, file, name);
  return data;
}

async function json(answer) {
  try {
    return await answer.json();
  } catch {
    return null;
  }
}

/** Yield the objects of a stream of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data) yield JSON.parse(data);
    }
  }
}
