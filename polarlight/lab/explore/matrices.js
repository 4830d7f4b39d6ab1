// The mathematics of the page, on dense matrices {m, n, a}: row by row in a Float64Array.
// No browser in here: node runs it as well, and the tests hold it against torch.
"use strict";

const Matrices = (() => {
  const zeros = (m, n) => ({ m, n, a: new Float64Array(m * n) });
  const of = (rows) => {
    const X = zeros(rows.length, rows[0].length);
    rows.forEach((row, i) => row.forEach((x, j) => { X.a[i * X.n + j] = x; }));
    return X;
  };
  const map = (X, f) => ({ m: X.m, n: X.n, a: X.a.map(f) });
  const scale = (X, c) => map(X, (x) => c * x);
  const norm = (X) => Math.sqrt(X.a.reduce((s, x) => s + x * x, 0));
  const dot = (X, Y) => X.a.reduce((s, x, i) => s + x * Y.a[i], 0);
  const transpose = (X) => {
    const Y = zeros(X.n, X.m);
    for (let i = 0; i < X.m; i++) for (let j = 0; j < X.n; j++) Y.a[j * X.m + i] = X.a[i * X.n + j];
    return Y;
  };
  const product = (X, Y) => {
    const Z = zeros(X.m, Y.n);
    for (let i = 0; i < X.m; i++) for (let k = 0; k < X.n; k++) {
      const x = X.a[i * X.n + k];
      if (x !== 0) for (let j = 0; j < Y.n; j++) Z.a[i * Y.n + j] += x * Y.a[k * Y.n + j];
    }
    return Z;
  };
  const rowNorms = (X) => Array.from({ length: X.m }, (_, i) =>
    Math.sqrt(X.a.subarray(i * X.n, (i + 1) * X.n).reduce((s, x) => s + x * x, 0)));
  const scaleRows = (X, d) => {
    const Y = { m: X.m, n: X.n, a: X.a.slice() };
    for (let i = 0; i < X.m; i++) for (let j = 0; j < X.n; j++) Y.a[i * X.n + j] *= d[i];
    return Y;
  };

  // Eigenvalues and vectors of a symmetric matrix, by Jacobi's rotations.
  const eigen = (S) => {
    const n = S.n, A = S.a.slice(), V = zeros(n, n).a;
    for (let i = 0; i < n; i++) V[i * n + i] = 1;
    const turn = (B, p, q, c, s, step, stride) => {
      for (let k = 0; k < n; k++) {
        const x = B[k * step + p * stride], y = B[k * step + q * stride];
        B[k * step + p * stride] = c * x - s * y;
        B[k * step + q * stride] = s * x + c * y;
      }
    };
    for (let sweep = 0; sweep < 40; sweep++) {
      let off = 0, all = 0;
      for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) {
        all += A[i * n + j] ** 2;
        if (i !== j) off += A[i * n + j] ** 2;
      }
      if (off <= 1e-30 * all) break;
      for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) {
        const apq = A[p * n + q];
        if (apq === 0) continue;
        const theta = (A[q * n + q] - A[p * n + p]) / (2 * apq);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const c = 1 / Math.sqrt(t * t + 1), s = t * c;
        turn(A, p, q, c, s, n, 1);
        turn(A, p, q, c, s, 1, n);
        turn(V, p, q, c, s, n, 1);
      }
    }
    return { values: Array.from({ length: n }, (_, i) => A[i * n + i]), vectors: { m: n, n, a: V } };
  };

  const tall = (X, f) => (X.m >= X.n ? f(X) : transpose(f(transpose(X))));
  const gram = (X) => product(transpose(X), X);
  const singularValues = (X) => eigen(gram(X.m >= X.n ? X : transpose(X))).values
    .map((x) => Math.sqrt(Math.max(x, 0))).sort((x, y) => y - x);
  const polar = (X) => tall(X, (T) => {
    const { values, vectors } = eigen(gram(T));
    const largest = Math.max(...values);
    const inverse = values.map((x) => (x > 1e-14 * largest ? 1 / Math.sqrt(x) : 0));
    return product(product(T, transpose(scaleRows(transpose(vectors), inverse))), transpose(vectors));
  });

  // X <- a X + b X X'X + c X (X'X)^2 ..., one list of odd coefficients per step.
  const polynomial = (X, coefficients) => tall(X, (T) => {
    const A = gram(T);
    let power = T, sum = scale(T, coefficients[0]);
    for (const c of coefficients.slice(1)) {
      power = product(power, A);
      const add = scale(power, c);
      sum = { m: sum.m, n: sum.n, a: sum.a.map((x, i) => x + add.a[i]) };
    }
    return sum;
  });
  const outputs = (sigma, steps) => steps.reduce((found, coefficients) => {
    const x = found[found.length - 1];
    return [...found, coefficients.reduce((s, c, i) => s + c * x ** (2 * i + 1), 0)];
  }, [sigma]);

  const shares = (U) => {
    const whole = norm(U) ** 2 / U.m;
    return rowNorms(U).map((r) => (whole ? (r * r) / whole : 0));
  };
  const unit = (X) => rowNorms(X).map((r) => (r > 0 ? 1 / r : 0));

  // Each method as the list of what it has after each round.
  const METHODS = {
    muon: (M, polarOf) => [polarOf(M)],
    muoneq: (M, polarOf) => [polarOf(scaleRows(M, unit(M)))],
    normuon: (M, polarOf) => {
      const U = polarOf(M), V = scaleRows(U, unit(U));
      return [U, scale(V, norm(U) / norm(V))];
    },
    aurora: (M, polarOf, rounds = 6) => {
      const fair = M.n / M.m, found = [];
      let D = unit(M);
      for (let k = 0; k < rounds; k++) {
        const U = polarOf(scaleRows(M, D));
        found.push(U);
        D = D.map((d, i) => { const h = rowNorms(U)[i] ** 2; return h > 0 ? d * Math.sqrt(fair / h) : 0; });
      }
      return found;
    },
  };
  const rounds = (M, method, steps) => {
    if (method === "newton-schulz") {
      let X = scale(M, 1 / norm(M));
      return [X, ...steps.map((c) => (X = polynomial(X, c)))];
    }
    const own = method === "aurora" && M.m <= M.n ? "muon" : method;
    return METHODS[own](M, polar);
  };

  const measures = (M, U) => {
    const singular = singularValues(U), row = shares(U);
    const mean = row.reduce((s, x) => s + x, 0) / row.length;
    const spread = Math.sqrt(row.reduce((s, x) => s + (x - mean) ** 2, 0) / row.length) / mean;
    const nuclear = singularValues(M).reduce((s, x) => s + x, 0);
    const full = norm(U) / Math.sqrt(Math.min(M.m, M.n));
    return { singular, shares: row, spread, starved: row.filter((x) => x < 0.1).length / row.length,
      alignment: dot(M, U) / nuclear / (full || 1) };
  };

  const random = (seed) => {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
    return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  };
  // Singular values from 1 down to 1/condition, evenly in their logarithm; then rows of unequal size.
  const example = ({ m, n, condition, rowSpread, seed }) => {
    const normal = random(seed), short = Math.min(m, n);
    const draw = (k) => polar(map(zeros(k, short), normal));
    const sigma = Array.from({ length: short }, (_, i) => condition ** (-i / Math.max(short - 1, 1)));
    const X = product(draw(m), scaleRows(transpose(draw(n)), sigma));
    return scaleRows(X, Array.from({ length: m }, () => Math.exp(rowSpread * normal())));
  };

  return { of, norm, product, transpose, eigen, singularValues, polar, polynomial, outputs, shares,
    rounds, measures, example };
})();

if (typeof module !== "undefined") module.exports = Matrices;
