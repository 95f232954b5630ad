// The viewer of a case report: NiiVue over the image and the masks that the page holds. Nothing is fetched.
"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const say = (text) => { element("viewer-state").textContent = text; };

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function loadNiivue() {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await unpack(element("niivue").textContent));
    document.head.append(script);
    return globalThis.niivue;
  }

  // Objects are painted from large to small, so that what lies inside another stays in sight.
  function paint(target, shape, bits, objects, shown) {
    target.fill(0);
    const order = [...objects].sort((a, b) => b.voxels - a.voxels);
    for (const object of order) {
      if (!shown.has(object.id)) continue;
      const [x0, y0, z0, nx, ny, nz] = object.box;
      let bit = object.start * 8;
      for (let z = z0; z < z0 + nz; z++) {
        for (let y = y0; y < y0 + ny; y++) {
          const row = (z * shape[1] + y) * shape[0];
          for (let x = x0; x < x0 + nx; x++, bit++) {
            if (bits[bit >> 3] & (1 << (bit & 7))) target[row + x] = object.id;
          }
        }
      }
    }
  }

  function measureMasks(objects, bits) {
    let start = 0;
    for (const object of objects) {
      const size = object.box[3] * object.box[4] * object.box[5];
      object.start = start;
      start += Math.ceil(size / 8);
      object.voxels = 0;
      for (let i = object.start; i < start; i++) {
        for (let byte = bits[i]; byte; byte &= byte - 1) object.voxels++;
      }
    }
  }

  async function start() {
    const data = JSON.parse(element("viewer-data").textContent);
    if (!document.createElement("canvas").getContext("webgl2") || !globalThis.DecompressionStream) {
      say("This browser offers no WebGL 2, so the interactive viewer stays closed; the pictures above need nothing.");
      return;
    }
    const { Niivue, NVImage } = await loadNiivue();
    const { shape, objects } = data;
    const [grey, bits] = await Promise.all([unpack(data.image), unpack(data.masks)]);
    measureMasks(objects, bits);

    for (const part of document.querySelectorAll(".viewer-part")) part.hidden = false;
    const nv = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [1, 1, 1, 0.6], crosshairWidth: 0.5, dragAndDropEnabled: false,
      isColorbar: false, isOrientCube: true, isRadiologicalConvention: true, sagittalNoseLeft: true,
      isNearestInterpolation: false,
      loadingText: "", logLevel: "error", multiplanarShowRender: 1, multiplanarLayout: 2, textHeight: 0.05, dragMode: 3,
    });
    const spacing = [0, 1, 2].map((column) => Math.hypot(...[0, 1, 2].map((row) => data.affine[4 * row + column])));
    const asImage = (values, type, name, colourMap) => {
      const file = NVImage.createNiftiArray(shape, spacing, data.affine, type, values);
      return NVImage.new(file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength), name, colourMap, 1);
    };
    const image = await asImage(grey, 2, "image.nii", "gray");
    const labels = new Uint16Array(shape[0] * shape[1] * shape[2]);
    const overlay = await asImage(new Uint8Array(labels.buffer), 512, "objects.nii", "gray");
    overlay.hdr.intent_code = 1002;  // labels: colours are looked up and never mixed
    await nv.attachToCanvas(element("canvas"));
    nv.addVolume(image);
    nv.addVolume(overlay);

    const shown = new Set(objects.map((object) => object.id));
    // the table of colours is as long as a power of two, so that the middle of an entry is hit exactly
    const size = Math.max(256, 2 ** Math.ceil(Math.log2(objects.length + 1)));
    const column = (value) => Array.from({ length: size }, (_, id) => (id && objects[id - 1] ? value(objects[id - 1]) : 0));
    overlay.setColormapLabel({
      R: column((object) => object.colour[0]), G: column((object) => object.colour[1]),
      B: column((object) => object.colour[2]), A: column(() => 255), I: [...Array(size).keys()],
    });
    const repaint = () => {
      paint(labels, shape, bits, objects, shown);
      overlay.img.set(labels);
      nv.updateGLVolume();
    };

    const rows = new Map([...document.querySelectorAll("tr[data-object]")].map((row) => [Number(row.dataset.object), row]));
    const choose = (id) => { for (const [key, row] of rows) row.classList.toggle("chosen", key === id); };
    const goTo = (point) => {
      nv.scene.crosshairPos = nv.mm2frac(point, 0, true);  // true: in the patient, however the slices lie
      nv.createOnLocationChange();
      nv.drawScene();
    };
    nv.onLocationChange = (where) => {
      const [x, y, z] = where.mm;
      const id = where.values[1] ? Math.round(where.values[1].value) : 0;
      const object = objects.find((one) => one.id === id);
      const side = (v, positive, negative) => `${v < 0 ? negative : positive} ${Math.abs(v).toFixed(1)}`;
      element("place").textContent =
        `${side(x, "R", "L")}, ${side(y, "A", "P")}, ${side(z, "H", "F")} mm` + (object ? `: ${object.name}` : "");
    };

    for (const button of document.querySelectorAll("[data-go]")) {
      button.disabled = false;
      button.addEventListener("click", () => {
        const object = objects.find((one) => one.id === Number(button.dataset.go));
        goTo(button.dataset.point ? JSON.parse(button.dataset.point) : object.centroid);
        choose(object.id);
        const box = element("screen").getBoundingClientRect();
        if (box.bottom < 120 || box.top > innerHeight - 120) element("screen").scrollIntoView({ block: "nearest" });
      });
    }
    for (const box of document.querySelectorAll("[data-show]")) {
      box.addEventListener("change", () => {
        const id = Number(box.dataset.show);
        if (box.checked) shown.add(id); else shown.delete(id);
        repaint();
      });
    }
    for (const [id, on] of [["show-all", true], ["show-none", false]]) {
      element(id).addEventListener("click", () => {
        shown.clear();
        for (const object of objects) if (on) shown.add(object.id);
        for (const box of document.querySelectorAll("[data-show]")) box.checked = on;
        repaint();
      });
    }
    const views = { all: nv.sliceTypeMultiplanar, axial: nv.sliceTypeAxial, coronal: nv.sliceTypeCoronal,
      sagittal: nv.sliceTypeSagittal, solid: nv.sliceTypeRender };
    for (const button of document.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => {
        for (const other of document.querySelectorAll("[data-view]")) other.setAttribute("aria-pressed", other === button);
        // in space the body is a faint shell around the objects
        nv.setOpacity(0, button.dataset.view === "solid" ? 0.15 : 1);
        nv.setSliceType(views[button.dataset.view]);
      });
    }
    const opacity = element("opacity");
    opacity.addEventListener("input", () => nv.setOpacity(1, Number(opacity.value) / 100));
    const levels = element("window");
    for (const [name] of data.windows) levels.append(new Option(name));
    const setWindow = () => {
      [, image.cal_min, image.cal_max] = data.windows[levels.selectedIndex];
      nv.updateGLVolume();
    };
    levels.addEventListener("change", setWindow);
    element("canvas").addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1], PageDown: [2, -1], PageUp: [2, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      const move = [0, 0, 0];
      move[step[0]] = step[1];
      nv.moveCrosshairInVox(...move);
    }, true);

    nv.setOpacity(1, Number(opacity.value) / 100);
    setWindow();
    repaint();
    if (objects.length) goTo(objects[0].centroid);
    globalThis.medsegViewer = nv;
    say("");
    document.documentElement.dataset.viewer = "ready";
  }

  start().catch((error) => {
    for (const part of document.querySelectorAll(".viewer-part")) part.hidden = true;
    say(`The interactive viewer could not start (${error.message}); the pictures above need nothing.`);
  });
})();
