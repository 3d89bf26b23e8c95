// A picture that carries its graph and the fields for sharing sites opens by its graph.
//
// Some pages look for the fields first, and make a graph of their own of them. So of such a picture they get all
// but the fields; a page that takes the graph first loses nothing by that.
import { app } from "../../scripts/app.js";

const FIELDS = "parameters";
const GRAPHS = ["workflow", "prompt"];
const TEXTS = ["tEXt", "iTXt"];
const SIGNATURE = 8; // bytes
const AROUND = 12; // bytes of a chunk beside its data: length, type, checksum

/** The parts of a PNG behind its signature: where each lies, and its keyword if it is a text. */
function chunks(bytes) {
  const view = new DataView(bytes);
  const found = [];
  for (let start = SIGNATURE; start + AROUND <= bytes.byteLength; ) {
    const end = start + AROUND + view.getUint32(start);
    const type = String.fromCharCode(...new Uint8Array(bytes, start + 4, 4));
    const data = new Uint8Array(bytes.slice(start + 8, end - 4));
    const keyword = TEXTS.includes(type) ? String.fromCharCode(...data.subarray(0, data.indexOf(0))) : null;
    found.push({ start, end, keyword });
    start = end;
  }
  return found;
}

async function withoutFields(file) {
  const bytes = await file.arrayBuffer();
  const parts = chunks(bytes);
  const keywords = parts.map(({ keyword }) => keyword);
  if (!keywords.includes(FIELDS) || !GRAPHS.some((name) => keywords.includes(name))) return file;
  const kept = parts.filter(({ keyword }) => keyword !== FIELDS).map(({ start, end }) => bytes.slice(start, end));
  return new File([bytes.slice(0, SIGNATURE), ...kept], file.name, { type: file.type });
}

app.registerExtension({
  name: "ComfyUI-ZImage.DroppedPictures",
  setup() {
    const { handleFile } = app;
    if (!handleFile) return;
    app.handleFile = async function (file, ...others) {
      const picture = file?.type === "image/png" ? await withoutFields(file) : file;
      return handleFile.call(this, picture, ...others);
    };
  },
});
