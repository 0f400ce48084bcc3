// A view of Gaussians in a page: unpacks the model, sorts it in a worker, draws it with WebGL2.
//
// packing.py describes the bytes of the model, page.py the scene (cameras, ranges) beside them. A
// frame is a camera and the order of the Gaussians from there: nothing is drawn before it is sorted.
// Axes are OpenCV's (right, down, forward); pixel centres are at +0.5.
'use strict';
(() => {

const GEOMETRY = 4;  // texels of a Gaussian in splats.vert
const DEPTH_KEYS = 1 << 16;

const FRAGMENT = `#version 300 es
precision highp float;
in vec2 place;
flat in vec4 color;
flat in float reach;
out vec4 premultiplied;
void main() {
  float r = dot(place, place);
  if (r > 1.0) discard;
  float alpha = min(color.a * exp(-reach * r), 0.99);
  premultiplied = vec4(color.rgb * alpha, alpha);
}`;

const COVER = `#version 300 es
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }`;

const FINISH = `#version 300 es
precision highp float;
uniform highp sampler2D blended;
uniform vec3 background;
out vec4 color;
void main() {
  vec4 sum = texelFetch(blended, ivec2(gl_FragCoord.xy), 0);
  color = vec4(sum.rgb + (1.0 - sum.a) * background, 1.0);
}`;

// The bytes of a model, one plane of `count` bytes after the other, as arrays for the GPU.
async function unpack(root, scene, width) {
  const element = root.querySelector('.model'), text = atob(element.textContent.trim());
  element.remove();
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < packed.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());

  const n = scene.count, blocks = [0, 1, 2, 4][scene.degree];
  const table = (Type, texels) => new Type(4 * width * Math.max(Math.ceil(texels / width), 1));
  const geometry = table(Float32Array, GEOMETRY * n), harmonics = table(Int8Array, 3 * blocks * n);
  const means = new Float32Array(3 * n), bits = new Uint32Array(means.buffer);
  const at = (plane, i) => bytes[plane * n + i];
  const in16 = (plane, i, [low, high]) =>
    low + (at(plane, i) + 256 * at(plane + 1, i)) * ((high - low) / 65535);
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < 3; k++) {
      bits[3 * i + k] = at(3 * k, i) << 8 | at(3 * k + 1, i) << 16 | at(3 * k + 2, i) << 24;
    }
    // the largest of (w, x, y, z) follows from the three others
    const quat = at(15, i) | at(16, i) << 8 | at(17, i) << 16 | at(18, i) << 24;
    const largest = quat >>> 30, g = 4 * GEOMETRY * i;
    let square = 0, place = 0;
    for (let k = 0; k < 4; k++) {
      if (k === largest) continue;
      const value = ((quat >>> 10 * place++ & 1023) - 511) / (511 * Math.SQRT2);
      geometry[g + 4 + k] = value;
      square += value * value;
    }
    geometry[g + 4 + largest] = Math.sqrt(Math.max(1 - square, 0));
    for (let k = 0; k < 3; k++) {
      geometry[g + k] = means[3 * i + k];
      geometry[g + 8 + k] = Math.exp(in16(9 + 2 * k, i, scene.scale_range));
      geometry[g + 12 + k] = in16(20 + 2 * k, i, scene.color_range);
    }
    geometry[g + 3] = at(19, i) / 255;
  }
  for (let k = 0; k < 3 * scene.sh_range.length; k++) {
    for (let i = 0; i < n; i++) harmonics[12 * blocks * i + k] = at(26 + k, i);
  }
  return {means, geometry, harmonics, blocks};
}

// Sorts Gaussians from back to front: returns a function that fills `order` and returns how many
// stand before the camera. Positive floats sort as their bits do, so keys are fine up close. The
// worker gets it as text: it may use its arguments alone.
function depthSorter(means, near, keys) {
  const n = means.length / 3, depths = new Float32Array(n), bits = new Uint32Array(depths.buffer);
  const starts = new Uint32Array(keys + 1);
  return ([x, y, z, w], order) => {
    let low = 0xffffffff, high = 0;
    for (let i = 0; i < n; i++) {
      const depth = x * means[3 * i] + y * means[3 * i + 1] + z * means[3 * i + 2] + w;
      depths[i] = depth > near ? depth : 0;
      if (bits[i] === 0) continue;
      if (bits[i] < low) low = bits[i];
      if (bits[i] > high) high = bits[i];
    }
    const factor = (keys - 1) / Math.max(high - low, 1);
    const key = i => (high - bits[i]) * factor | 0;
    starts.fill(0);
    for (let i = 0; i < n; i++) if (bits[i] !== 0) starts[key(i) + 1]++;
    for (let k = 0; k < keys; k++) starts[k + 1] += starts[k];
    const count = starts[keys];
    for (let i = 0; i < n; i++) if (bits[i] !== 0) order[starts[key(i)]++] = i;
    return count;
  };
}

// Returns sort(plane), a promise of {order, count}; the array of the order goes to and fro.
function startSorting(means, near) {
  const source = `let sort; onmessage = ({data}) => {
    if (data.means) { sort = (${depthSorter})(data.means, ${near}, ${DEPTH_KEYS}); return; }
    const count = sort(data.plane, data.order);
    postMessage({order: data.order, count}, [data.order.buffer]); };`;
  const worker = new Worker(URL.createObjectURL(new Blob([source], {type: 'text/javascript'})));
  let order = new Uint32Array(means.length / 3);
  worker.postMessage({means});
  return plane => new Promise((resolve, reject) => {
    worker.onmessage = ({data}) => { order = data.order; resolve(data); };
    worker.onerror = () => reject(new Error('the page may not start its worker'));
    worker.postMessage({plane, order}, [order.buffer]);
  });
}

// Returns draw(frame, order, count).
function startDrawing(gl, vertex, model, scene, width) {
  const program = (...texts) => {
    const made = gl.createProgram();
    for (const [i, kind] of [gl.VERTEX_SHADER, gl.FRAGMENT_SHADER].entries()) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, texts[i]);
      gl.compileShader(shader);
      gl.attachShader(made, shader);
    }
    gl.linkProgram(made);
    if (gl.getProgramParameter(made, gl.LINK_STATUS)) return made;
    throw new Error('this device refuses the shaders: ' + gl.getProgramInfoLog(made));
  };
  const textures = [0, 1, 2].map(unit => {
    const made = gl.createTexture();
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, made);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    return made;
  });
  const fill = (unit, format, type, values, w = width, h = values.length / (4 * width)) => {
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.texImage2D(gl.TEXTURE_2D, 0, format, w, h, 0, gl.RGBA, type, values);
  };
  fill(0, gl.RGBA32F, gl.FLOAT, model.geometry);
  fill(1, gl.RGBA8_SNORM, gl.BYTE, model.harmonics);

  // layers add up in half floats: in 8 bits each would round what lies below it
  const half = gl.getExtension('EXT_color_buffer_float')
    || gl.getExtension('EXT_color_buffer_half_float');
  const target = gl.createFramebuffer();
  gl.bindFramebuffer(gl.FRAMEBUFFER, target);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, textures[2], 0);
  let size = '';
  const resize = (w, h) => {
    [gl.canvas.width, gl.canvas.height, size] = [w, h, `${w},${h}`];
    if (half) fill(2, gl.RGBA16F, gl.HALF_FLOAT, null, w, h);
    else fill(2, gl.RGBA8, gl.UNSIGNED_BYTE, null, w, h);
    gl.viewport(0, 0, w, h);
  };

  const splats = program(vertex, FRAGMENT), finish = program(COVER, FINISH);
  const of = name => gl.getUniformLocation(splats, name);
  const [rotation, position, lens, area] = ['rotation', 'position', 'lens', 'size'].map(of);
  const background = gl.getUniformLocation(finish, 'background');
  gl.useProgram(splats);
  gl.uniform1i(of('harmonics'), 1);
  gl.uniform1f(of('near'), scene.near);
  gl.uniform1i(of('antialiased'), scene.antialiased ? 1 : 0);
  gl.uniform1i(of('blocks'), model.blocks);
  gl.uniform4fv(of('ranges'), [...scene.sh_range, ...Array(16).fill(0)].slice(0, 16));
  gl.useProgram(finish);
  gl.uniform1i(gl.getUniformLocation(finish, 'blended'), 2);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.enableVertexAttribArray(0);
  gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(0, 1);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);

  return (frame, order, count) => {
    if (frame.size.join() !== size) resize(...frame.size);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.useProgram(splats);
    gl.uniformMatrix3fv(rotation, true, frame.axes.flat());
    gl.uniform3fv(position, frame.position);
    gl.uniform4fv(lens, frame.lens);
    gl.uniform2fv(area, frame.size);
    gl.bufferData(gl.ARRAY_BUFFER, order, gl.DYNAMIC_DRAW);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.useProgram(finish);
    gl.uniform3fv(background, frame.background);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  };
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const plus = (a, b, factor = 1) => a.map((value, i) => value + factor * b[i]);

// Rotates v about a unit axis (Rodrigues).
function turned(v, axis, angle) {
  const c = Math.cos(angle), s = Math.sin(angle), along = dot(axis, v) * (1 - c);
  return v.map((value, i) => {
    const j = (i + 1) % 3, k = (i + 2) % 3;
    return value * c + (axis[j] * v[k] - axis[k] * v[j]) * s + axis[i] * along;
  });
}

// Mouse, touch and keys move `view` and call `moved`; `press` gets the keys that move nothing.
function listen(root, canvas, view, up, scaleOf, moved, press) {
  const pointers = new Map(), keys = new Set();
  const turn = (axis, angle, centre) => {
    const axes = view.axes.map(v => turned(v, axis, angle));
    const steep = [axes, view.axes].map(a => Math.abs(dot(a[2], up)));
    if (steep[0] > Math.max(0.998, steep[1]) && axis !== up) return;  // do not tip over
    view.axes = axes;
    view.position = plus(centre, turned(plus(view.position, centre, -1), axis, angle));
  };
  const orbit = (dx, dy) => {
    const centre = plus(view.position, view.axes[2], view.distance);
    turn(up, -dx, centre);
    turn(view.axes[0], -dy, centre);
  };
  const walk = (axis, by) => { view.position = plus(view.position, view.axes[axis], by); };
  const zoom = factor => {
    walk(2, view.distance * (1 - factor));
    view.distance *= factor;
  };
  const middle = () => {  // of one or two fingers
    const all = [...pointers.values()], a = all[0], b = all[all.length - 1];
    return [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2, Math.hypot(a[0] - b[0], a[1] - b[1])];
  };
  canvas.addEventListener('contextmenu', event => event.preventDefault());
  canvas.addEventListener('pointerdown', event => {
    root.focus();
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener('pointermove', event => {
    if (!pointers.has(event.pointerId)) return;
    const [x, y, apart] = middle();
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    const [dx, dy, spread] = plus(middle(), [x, y, 0], -1);
    const turns = pointers.size === 1 && event.buttons === 1 && !event.shiftKey;
    if (turns) orbit(0.006 * dx, 0.006 * dy);
    else [dx, dy].forEach((d, axis) => walk(axis, -d * view.distance / scaleOf()));
    if (apart > 0 && spread > 0) zoom(apart / spread);
    moved();
  });
  for (const end of ['pointerup', 'pointercancel'])
    canvas.addEventListener(end, event => pointers.delete(event.pointerId));
  canvas.addEventListener('wheel', event => {
    if (!root.contains(document.activeElement)) return;  // the page around scrolls
    event.preventDefault();
    zoom(Math.exp((event.deltaMode === 0 ? 0.001 : 0.04) * event.deltaY));
    moved();
  }, {passive: false});

  const held = {  // what a key does in t seconds
    KeyW: t => walk(2, t * view.distance), KeyS: t => walk(2, -t * view.distance),
    KeyD: t => walk(0, t * view.distance), KeyA: t => walk(0, -t * view.distance),
    KeyQ: t => walk(1, t * view.distance), KeyE: t => walk(1, -t * view.distance),
    ArrowLeft: t => orbit(t, 0), ArrowRight: t => orbit(-t, 0),
    ArrowUp: t => orbit(0, t), ArrowDown: t => orbit(0, -t),
  };
  let last = 0;
  const advance = now => {
    for (const key of keys) held[key](Math.min(Math.max(now - last, 0), 100) / 1000);
    last = now;
    moved();
    if (keys.size > 0) requestAnimationFrame(advance);
  };
  root.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('select')) return;
    if (!(event.code in held)) { press(event.code); return; }
    event.preventDefault();
    if (keys.size === 0) { last = performance.now(); requestAnimationFrame(advance); }
    keys.add(event.code);
  });
  root.addEventListener('keyup', event => keys.delete(event.code));
  root.addEventListener('blur', () => keys.clear(), true);
}

async function start(root) {
  const scene = JSON.parse(root.querySelector('.scene').textContent);
  const canvas = root.querySelector('canvas'), list = root.querySelector('select');
  const paint = root.querySelector('input'), panel = root.querySelector('.panel');
  const gl = canvas.getContext('webgl2', {alpha: false, antialias: false, depth: false});
  if (!gl) throw new Error('this browser has no WebGL 2');
  const width = Math.floor(gl.getParameter(gl.MAX_TEXTURE_SIZE) / 12) * 12;
  if (scene.count > width * width / 12) throw new Error('this device has no room for the model');
  canvas.addEventListener('webglcontextlost', () => fail(root, 'the graphics device was lost'));
  const model = await unpack(root, scene, width), sort = startSorting(model.means, scene.near);
  const vertex = root.querySelector('.vertex').textContent.trim();
  const draw = startDrawing(gl, vertex, model, scene, width);
  model.geometry = model.harmonics = null;

  const view = {}, sharpness = () => Math.min(window.devicePixelRatio, 2);
  const scale = () => Math.min(canvas.clientWidth / view.width, canvas.clientHeight / view.height);
  const frame = () => {
    const size = [canvas.clientWidth, canvas.clientHeight].map(x => Math.round(x * sharpness()));
    const s = scale() * sharpness(), shift = (i, extent) => (size[i] - extent * s) / 2;
    const [fx, fy, cx, cy] = view.lens.map(x => x * s);
    const lens = [fx, fy, cx + shift(0, view.width), cy + shift(1, view.height)];
    const background = [1, 3, 5].map(i => parseInt(paint.value.slice(i, i + 2), 16) / 255);
    return {axes: view.axes, position: view.position, lens, size, background};
  };
  let sorting = false, wanted = false;
  const update = async () => {
    for (sorting = true; wanted;) {
      wanted = false;
      const next = frame(), forward = next.axes[2];
      if (next.size.includes(0)) break;
      const {order, count} = await sort([...forward, -dot(forward, next.position)]);
      await new Promise(requestAnimationFrame);
      draw(next, order, count);
      root.viewed = next;
    }
    sorting = false;
    if (root.dataset.state === 'moving') root.dataset.state = 'shown';
  };
  const refresh = () => {
    if (root.dataset.state === 'failed') return;
    root.dataset.state = 'moving';
    wanted = true;
    if (!sorting) update().catch(error => fail(root, error.message));
  };
  const choose = i => {
    list.selectedIndex = (i + scene.cameras.length) % scene.cameras.length;
    Object.assign(view, scene.cameras[list.selectedIndex]);
    refresh();
  };
  list.append(...scene.cameras.map(camera => new Option(camera.name)));
  list.addEventListener('change', () => choose(list.selectedIndex));
  paint.addEventListener('input', refresh);
  listen(root, canvas, view, scene.up, () => view.lens[0] * scale(), refresh, code => {
    if (code === 'KeyN') choose(list.selectedIndex + 1);
    if (code === 'KeyP') choose(list.selectedIndex - 1);
    if (code === 'KeyR') choose(list.selectedIndex);
    if (code === 'KeyH') panel.hidden = !panel.hidden;
  });
  choose(0);
  new ResizeObserver(refresh).observe(canvas);
}

function fail(root, reason) {
  root.dataset.state = 'failed';
  root.querySelector('.message').textContent = `The 3D view cannot be shown: ${reason}.`;
}

for (const root of document.querySelectorAll('.splats:not([data-state])')) {
  root.dataset.state = 'loading';
  start(root).catch(error => fail(root, error.message));
}
})();
