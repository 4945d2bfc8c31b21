// The files of a tar (POSIX ustar) while it comes: for await (const file of files(response)) ...

const BLOCK = 512;

export async function* files(response) {
  const reader = response.body.getReader();
  let held = new Uint8Array(0), ended = false;

  async function take(count) {
    const parts = [held];
    let length = held.length;
    while (length < count && !ended) {
      const { value, done } = await reader.read();
      if (done) ended = true;
      else { parts.push(value); length += value.length; }
    }
    if (length < count) throw new TypeError("the set was cut short");
    const all = new Uint8Array(length);
    let place = 0;
    for (const part of parts) { all.set(part, place); place += part.length; }
    held = all.subarray(count);
    return all.subarray(0, count);
  }

  const text = new TextDecoder("ascii");
  const field = (header, start, length) => text.decode(header.subarray(start, start + length)).split("\0")[0];
  try {
    for (;;) {
      const header = (await take(BLOCK)).slice();
      if (!header[0]) return;
      const size = parseInt(field(header, 124, 12), 8);
      const data = (await take(size)).slice();
      await take((BLOCK - size % BLOCK) % BLOCK);
      yield { name: field(header, 0, 100), data };
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
