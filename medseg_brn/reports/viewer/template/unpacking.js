// From the text in the page to arrays: base64, then zlib by the browser, then bytes put together.

const PIECE = 4 * 2 ** 18; // four characters are three bytes

async function unpack(id, length, bytesPerValue) {
  const bytes = await inflate(document.getElementById(id), length * bytesPerValue);
  if (bytesPerValue === 1) return bytes;
  // The lower bytes of all values come first, then the upper ones.
  const values = new Uint16Array(length);
  for (let i = 0; i < length; i++) values[i] = bytes[i] | (bytes[i + length] << 8);
  return values;
}

async function inflate(element, length) {
  const text = element.textContent;
  element.remove();
  let read = 0;
  const packed = new ReadableStream({
    pull(controller) {
      if (read >= text.length) return controller.close();
      const letters = atob(text.slice(read, read + PIECE));
      const piece = new Uint8Array(letters.length);
      for (let i = 0; i < piece.length; i++) piece[i] = letters.charCodeAt(i);
      controller.enqueue(piece);
      read += PIECE;
    },
  });
  const reader = packed.pipeThrough(new DecompressionStream("deflate")).getReader();
  const bytes = new Uint8Array(length);
  let filled = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (filled + value.length > length) throw new Error("more voxels than the page announces");
    bytes.set(value, filled);
    filled += value.length;
  }
  if (filled < length) throw new Error("fewer voxels than the page announces");
  return bytes;
}
