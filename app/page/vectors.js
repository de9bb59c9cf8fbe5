/* Feature vectors: decoding, norms and similarities. */

/** Decode base64 of little-endian float32 numbers. */
export function decoded(base64) {
  const view = new DataView(Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer);
  return Float32Array.from({ length: view.byteLength / 4 }, (_, index) => view.getFloat32(index * 4, true));
}

function dot(a, b) {
  let sum = 0;
  for (let index = 0; index < a.length; index += 1) sum += a[index] * b[index];
  return sum;
}

/** The Euclidean length. */
export function norm(vector) {
  return Math.sqrt(dot(vector, vector));
}

/** The cosine of each two vectors, row by row; 0 if one of them is zero. */
export function cosines(vectors) {
  const norms = vectors.map(norm);
  return vectors.map((a, row) =>
    vectors.map((b, column) => {
      const lengths = norms[row] * norms[column];
      return lengths === 0 ? 0 : dot(a, b) / lengths;
    }),
  );
}

/** The number furthest from zero in each group of `count`. */
export function strongest(vector, count) {
  if (count <= 1) return vector;
  return Float32Array.from({ length: Math.ceil(vector.length / count) }, (_, index) =>
    vector
      .subarray(index * count, (index + 1) * count)
      .reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0),
  );
}

/** The share of numbers that are exactly zero, as after a ReLU. */
export function zeros(vector) {
  return vector.reduce((found, value) => found + (value === 0), 0) / vector.length;
}
