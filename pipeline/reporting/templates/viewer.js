// The viewer: decodes what report.html holds of a case, and shows it with NiiVue.
"use strict";

(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const find = (id) => document.getElementById(id);
  const stage = find("stage");
  if (!stage || report.cases.length === 0) return;

  const NONE = "none";
  const ERROR = "error";
  const state = { case: 0, image: null, overlay: null, region: report.regions[0].name };
  let shown = null; // the decoded case
  let view = null; // NiiVue
  let turn = 0; // of what is being loaded: an older one is dropped

  const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

  async function unpacked(text) {
    const stream = new Blob([bytesOf(text)]).stream();
    const whole = stream.pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(whole).arrayBuffer());
  }

  // A mosaic of axial slices back into a volume in which X runs fastest.
  async function depicted(picture, [sizeX, sizeY, sizeZ]) {
    const blob = new Blob([bytesOf(picture.webp)], { type: "image/webp" });
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
    const canvas = document.createElement("canvas");
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const volume = new Uint8Array(sizeX * sizeY * sizeZ);
    let target = 0;
    for (let z = 0; z < sizeZ; z++) {
      const left = (z % picture.columns) * sizeX;
      const top = Math.floor(z / picture.columns) * sizeY;
      for (let y = 0; y < sizeY; y++) {
        let source = 4 * ((top + y) * canvas.width + left);
        for (let x = 0; x < sizeX; x++, source += 4) volume[target++] = pixels[source];
      }
    }
    return volume;
  }

  // A NIfTI-1 file of bytes, which is what NiiVue reads.
  function nifti(volume, shape, affine) {
    const file = new ArrayBuffer(352 + volume.length);
    const header = new DataView(file);
    header.setInt32(0, 348, true);
    [3, ...shape, 1, 1, 1, 1].forEach((size, i) => header.setInt16(40 + 2 * i, size, true));
    header.setInt16(70, 2, true); // uint8
    header.setInt16(72, 8, true);
    const spacing = [0, 1, 2].map((k) => Math.hypot(affine[0][k], affine[1][k], affine[2][k]));
    [1, ...spacing, 1, 1, 1, 1].forEach((mm, i) => header.setFloat32(76 + 4 * i, mm, true));
    header.setFloat32(108, 352, true);
    header.setFloat32(112, 1, true);
    header.setUint8(123, 2); // mm
    header.setInt16(254, 1, true); // the scanner's coordinates, by these three rows:
    affine.slice(0, 3).forEach((row, i) =>
      row.forEach((value, k) => header.setFloat32(280 + 16 * i + 4 * k, value, true)),
    );
    [0x6e, 0x2b, 0x31, 0].forEach((byte, i) => header.setUint8(344 + i, byte));
    new Uint8Array(file, 352).set(volume);
    return file;
  }

  async function decode(index) {
    const stored = JSON.parse(find(`case-${index}`).textContent);
    const { shape, affine } = stored;
    const masks = {};
    for (const [name, mask] of Object.entries(stored.masks)) masks[name] = await unpacked(mask.gzip);
    const pictures = { ...stored.images, ...stored.maps };
    return { shape, affine, masks, pictures, volumes: {}, images: Object.keys(stored.images), maps: Object.keys(stored.maps) };
  }

  async function volumeOf(one, name) {
    one.volumes[name] ??= await depicted(one.pictures[name], one.shape);
    return one.volumes[name];
  }

  // 1: of the truth alone, missed. 2: of the prediction alone, false.
  function errors(one, region) {
    const { truth, prediction } = one.masks;
    const inside = new Set(report.regions.find((each) => each.name === region).classes);
    return truth.map((value, i) => {
      const isTrue = inside.has(value);
      return isTrue === inside.has(prediction[i]) ? 0 : isTrue ? 1 : 2;
    });
  }

  function colours(entries) {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    entries.forEach(({ name, rgb }, i) => {
      map.R.push(rgb[0]);
      map.G.push(rgb[1]);
      map.B.push(rgb[2]);
      map.A.push(255);
      map.I.push(i + 1);
      map.labels.push(name);
    });
    return map;
  }

  async function layer(one, volume, name, colormap, opacity) {
    const image = await niivue.NVImage.new(nifti(volume, one.shape, one.affine), `${name}.nii`, colormap, opacity);
    return image;
  }

  async function layers(one) {
    const base = state.image ? await volumeOf(one, state.image) : new Uint8Array(one.masks.prediction.length);
    const found = [await layer(one, base, "image", "gray", 1)];
    const opacity = Number(find("opacity").value);
    if (state.overlay === ERROR) {
      const image = await layer(one, errors(one, state.region), ERROR, "gray", opacity);
      image.setColormapLabel(colours(report.errors));
      found.push(image);
    } else if (one.maps.includes(state.overlay)) {
      found.push(await layer(one, await volumeOf(one, state.overlay), "map", "inferno", opacity));
    } else if (state.overlay !== NONE) {
      const image = await layer(one, one.masks[state.overlay], state.overlay, "gray", opacity);
      image.setColormapLabel(colours(report.classes));
      found.push(image);
    }
    return found;
  }

  async function draw() {
    const mine = ++turn;
    stage.setAttribute("aria-busy", "true");
    const wanted = await layers(shown);
    if (mine !== turn) return;
    while (view.volumes.length) view.removeVolume(view.volumes[view.volumes.length - 1]);
    wanted.forEach((each) => view.addVolume(each));
    view.updateGLVolume();
    stage.setAttribute("aria-busy", "false");
    stage.dataset.shown = [report.cases[state.case].number, state.image ?? "", state.overlay, state.region].join(" ");
  }

  function legend() {
    const entries = state.overlay === ERROR ? report.errors : [NONE, ...shown.maps].includes(state.overlay) ? [] : report.classes;
    find("legend").replaceChildren(
      ...entries.map(({ name, rgb }) => {
        const item = document.createElement("li");
        const patch = document.createElement("span");
        patch.className = "patch";
        patch.style.backgroundColor = `rgb(${rgb.join(",")})`;
        item.append(patch, name);
        return item;
      }),
    );
  }

  // Radio buttons for what the case has; the choice stays where it is possible.
  function choices(id, names, chosen, choose) {
    const group = find(id);
    group.replaceChildren(
      ...names.map((name, i) => {
        const label = document.createElement("label");
        const input = document.createElement("input");
        input.type = "radio";
        input.name = id;
        input.value = name;
        input.checked = name === chosen;
        input.addEventListener("change", () => choose(name));
        const text = document.createElement("span");
        text.textContent = name;
        label.append(input, text);
        return label;
      }),
    );
  }

  function controls() {
    choices("images", shown.images, state.image, (name) => change({ image: name }));
    choices("overlays", overlays(), state.overlay, (name) => change({ overlay: name }));
    choices("regions", report.regions.map((each) => each.name), state.region, (name) => change({ region: name }));
    find("regions").parentElement.hidden = state.overlay !== ERROR;
    legend();
  }

  function overlays() {
    const both = shown.masks.truth && shown.masks.prediction;
    return [NONE, ...Object.keys(shown.masks), ...(both ? [ERROR] : []), ...shown.maps];
  }

  async function change(what) {
    Object.assign(state, what);
    controls();
    await draw();
  }

  async function open(index) {
    const mine = ++turn;
    stage.setAttribute("aria-busy", "true");
    const one = await decode(index);
    if (mine !== turn) return;
    shown = one;
    state.case = index;
    if (!one.images.includes(state.image)) state.image = one.images[0] ?? null;
    if (!overlays().includes(state.overlay)) state.overlay = overlays().includes("prediction") ? "prediction" : NONE;
    find("case").value = String(index);
    document.querySelectorAll(".case-facts").forEach((each, i) => (each.hidden = i !== index));
    controls();
    await draw();
    centre(one);
  }

  // To the middle of the tumour, of the truth if there is one.
  function centre(one) {
    const mask = [one.masks.truth, one.masks.prediction].find((each) => each?.some((value) => value > 0));
    if (!mask) return;
    const [sizeX, sizeY] = one.shape;
    const sum = [0, 0, 0];
    let count = 0;
    mask.forEach((value, i) => {
      if (value === 0) return;
      const place = [i % sizeX, Math.floor(i / sizeX) % sizeY, Math.floor(i / (sizeX * sizeY))];
      place.forEach((k, axis) => (sum[axis] += k));
      count++;
    });
    const voxel = sum.map((total) => total / count);
    const mm = one.affine.slice(0, 3).map((row) => row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]);
    view.scene.crosshairPos = view.mm2frac(mm);
    view.drawScene();
  }

  const step = (by) => open((state.case + by + report.cases.length) % report.cases.length);

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range], select, summary")) return;
    const name = event.key;
    if (name === "n") step(1);
    else if (name === "p") step(-1);
    else if (name === "o") change({ overlay: overlays()[(overlays().indexOf(state.overlay) + 1) % overlays().length] });
    else if (/^[1-9]$/.test(name) && shown.images[Number(name) - 1]) change({ image: shown.images[Number(name) - 1] });
    else return;
    event.preventDefault();
  }

  function withoutViewer(reason) {
    find("viewer").hidden = true;
    const note = find("no-viewer");
    note.hidden = false;
    note.append(` (${reason})`);
    document.querySelectorAll(".case-facts").forEach((each) => (each.hidden = false));
  }

  async function start() {
    const probe = document.createElement("canvas").getContext("webgl2");
    if (!probe) return withoutViewer("no WebGL2");
    view = new niivue.Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.94, 0.89, 0.26, 0.8],
      crosshairGap: 6,
      crosshairWidth: 0.6,
      crosshairWidthUnit: "mm",
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      show3Dcrosshair: true,
      loadingText: "",
      logLevel: "error",
      multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
      onLocationChange: (place) => (find("place").textContent = place.string),
    });
    await view.attachToCanvas(stage);
    view.setSliceType(view.sliceTypeMultiplanar);
    view.setMultiplanarLayout(niivue.MULTIPLANAR_TYPE.GRID);
    find("case").addEventListener("change", (event) => open(Number(event.target.value)));
    find("previous").addEventListener("click", () => step(-1));
    find("next").addEventListener("click", () => step(1));
    find("opacity").addEventListener("input", (event) => {
      if (view.volumes.length > 1) view.setOpacity(1, Number(event.target.value));
    });
    document.addEventListener("keydown", key);
    document.querySelectorAll("a[data-case]").forEach((link) =>
      link.addEventListener("click", () => open(Number(link.dataset.case))),
    );
    await open(0);
  }

  start().catch((error) => {
    console.error(error);
    withoutViewer(String(error));
  });
})();
