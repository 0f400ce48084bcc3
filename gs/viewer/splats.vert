#version 300 es
// EWA projection (Zwicker et al. 2001) to the ellipse where alpha >= 1/255, in a quad on its axes.
precision highp float;
precision highp int;
precision highp sampler2D;
layout(location = 0) in uint row;
uniform sampler2D geometry, harmonics;  // mean, opacity; quaternion; scale; colour: four texels
uniform float near;      // plane, in world units
uniform bool antialiased;  // fainter where the ellipse is widened
uniform int blocks;      // of four SH coefficients: 0, 1, 2, 4 for degrees 0 to 3
uniform vec4 ranges[4];  // of the coefficients
uniform mat3 rotation;   // world to camera
uniform vec3 position;   // of the camera
uniform vec4 lens;       // fx, fy, cx, cy in pixels
uniform vec2 size;       // of the image in pixels
out vec2 place;          // the unit circle is where alpha is 1/255
flat out vec4 color;     // with opacity
flat out float reach;    // (d^T conic d) / 2 on the unit circle

vec4 texel(sampler2D table, int i) {
  int width = textureSize(table, 0).x;
  return texelFetch(table, ivec2(i % width, i / width), 0);
}

vec3 block(int i, vec4 basis, vec4 range) {  // four coefficients of three channels in three texels
  mat4x3 s = mat4x3(texel(harmonics, i), texel(harmonics, i + 1), texel(harmonics, i + 2));
  return matrixCompMult(s, mat4x3(abs(s[0]), abs(s[1]), abs(s[2]), abs(s[3]))) * (basis * range);
}

vec3 shade(vec3 base, vec3 d) {
  float x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  vec3 c = 0.28209479177387814 * base + 0.5;
  int i = 3 * blocks * int(row);
  if (blocks > 0) c += block(i, vec4(0.4886025119029199 * vec3(-y, z, -x),
    1.0925484305920792 * x * y), ranges[0]);
  if (blocks > 1) c += block(i + 3, vec4(-1.0925484305920792 * y * z,
    0.31539156525252005 * (2.0 * zz - xx - yy), -1.0925484305920792 * x * z,
    0.5462742152960396 * (xx - yy)), ranges[1]);
  if (blocks > 2) {
    c += block(i + 6, vec4(-0.5900435899266435 * y * (3.0 * xx - yy),
      2.890611442640554 * x * y * z, -0.4570457994644658 * y * (4.0 * zz - xx - yy),
      0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy)), ranges[2]);
    c += block(i + 9, vec4(-0.4570457994644658 * x * (4.0 * zz - xx - yy),
      1.445305721320277 * z * (xx - yy), -0.5900435899266435 * x * (xx - 3.0 * yy), 0), ranges[3]);
  }
  return max(c, 0.0);
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);  // behind the far plane: not drawn
  int first = 4 * int(row);
  vec4 mean = texel(geometry, first), q = texel(geometry, first + 1);
  vec3 scale = texel(geometry, first + 2).xyz, d = mean.xyz - position, t = rotation * d;
  float opacity = mean.w;
  if (t.z <= near) return;

  vec2 slope = t.xy / t.z, margin = 0.15 * size / lens.xy;
  vec2 s = clamp(slope, -lens.zw / lens.xy - margin, (size - lens.zw) / lens.xy + margin);
  float w = q.x, x = q.y, y = q.z, z = q.w;
  mat3 view = transpose(rotation), axes = mat3(
    1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
  vec3 hx = (lens.x / t.z * (view[0] - s.x * view[2])) * axes * scale;
  vec3 hy = (lens.y / t.z * (view[1] - s.y * view[2])) * axes * scale;
  float xx = dot(hx, hx), yy = dot(hy, hy), xy = dot(hx, hy);
  vec3 n = cross(hx, hy);
  float det = dot(n, n) + 0.3 * (xx + yy) + 0.09;  // Lagrange's identity: nothing cancels

  if (antialiased) opacity *= sqrt(dot(n, n) / det);
  if (opacity < 1.0 / 255.0) return;
  reach = log(255.0 * opacity);
  vec2 centre = lens.xy * slope + lens.zw, box = sqrt(2.0 * reach * vec2(xx + 0.3, yy + 0.3));
  if (any(lessThan(centre + box, vec2(0.0))) || any(greaterThan(centre - box, size))) return;

  float skew = 0.5 * (xx - yy), radius = length(vec2(skew, xy));
  float major = 0.5 * (xx + yy) + 0.3 + radius, minor = det / major;
  vec2 along = skew < 0.0 ? vec2(xy, radius - skew) : vec2(radius + skew, xy);
  along = radius > 0.0 ? normalize(along) : vec2(1.0, 0.0);
  place = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  vec2 extent = sqrt(2.0 * reach * vec2(major, minor)) * place;
  vec2 pixel = centre + extent.x * along + extent.y * vec2(-along.y, along.x);
  color = vec4(shade(texel(geometry, first + 3).xyz, normalize(d)), opacity);
  gl_Position = vec4((2.0 * pixel / size - 1.0) * vec2(1.0, -1.0), 0.0, 1.0);
}
