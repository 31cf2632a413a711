/* Whitening of points in the plane, step for step as wmse/whitening.py does it in k dimensions. Pure functions.
   A point is [x, y]; a symmetric matrix or W is [[a, b], [c, d]]. Tested against the package in tests/site/. */
"use strict";

window.whiten2d = (() => {
  const EPSILON = Number.EPSILON;
  const MAX_OFFSET = 0.03; // of a whitened slice's mean, in standard deviations
  const METHODS = ["cholesky", "zca", "pca", "newton-schulz"];

  const multiply = ([[a, b], [c, d]], [[e, f], [g, h]]) => [
    [a * e + b * g, a * f + b * h],
    [c * e + d * g, c * f + d * h],
  ];
  const apply = ([[a, b], [c, d]], [x, y]) => [a * x + b * y, c * x + d * y];

  function mean(points) {
    const [x, y] = points.reduce(([sx, sy], [px, py]) => [sx + px, sy + py], [0, 0]);
    return [x / points.length, y / points.length];
  }

  const centred = (points, [mx, my]) => points.map(([x, y]) => [x - mx, y - my]);

  /** (1 - eps) Sigma + eps I of centred points, divisor n - 1. */
  function covariance(points, eps = 0) {
    const factor = (1 - eps) / (points.length - 1);
    const [a, b, c] = points.reduce(([p, q, r], [x, y]) => [p + x * x, q + x * y, r + y * y], [0, 0, 0]);
    return [[factor * a + eps, factor * b], [factor * b, factor * c + eps]];
  }

  /** Eigenvalues, the larger first, and the direction of its eigenvector as [cos, sin]. */
  function eigen([[a, b], [, c]]) {
    const half = (a - c) / 2;
    const radius = Math.hypot(half, b);
    const angle = radius === 0 ? Math.PI / 2 : Math.atan2(b, half) / 2; // without axes: LAPACK's order, reversed
    return { values: [(a + c) / 2 + radius, (a + c) / 2 - radius], direction: [Math.cos(angle), Math.sin(angle)] };
  }

  /* Each factorisation gives W, how far it can be trusted, and the least that this must be. */

  function cholesky(sigma) {
    const [[a, b], [, c]] = sigma;
    const p = Math.sqrt(a);
    const q = b / p;
    const r = Math.sqrt(c - q * q);
    const W = [[1 / p, 0], [-q / (p * r), 1 / r]];
    const explained = Math.max((W[0][0] ** 2 + W[1][0] ** 2) * a, W[1][1] ** 2 * c);
    return { W, unexplained: 1 / explained, tolerance: 20 * 2 * EPSILON };
  }

  function byEigenvectors(sigma, matrix) {
    const { values, direction } = eigen(sigma);
    const lengths = values.map((value) => Math.sqrt(Math.max(value, 0)));
    const tolerance = Math.max(10 * 2 * EPSILON, Math.sqrt(20 * 2 * EPSILON));
    return { W: matrix(lengths, direction), unexplained: lengths[1] / lengths[0], tolerance };
  }

  /** Each axis points the way in which its largest entry is positive. */
  const oriented = ([x, y]) => ((Math.abs(x) >= Math.abs(y) ? x : y) < 0 ? [-x, -y] : [x, y]);

  const pca = (sigma) =>
    byEigenvectors(sigma, (lengths, [x, y]) =>
      [[x, y], [-y, x]].map((axis, i) => oriented(axis).map((entry) => entry / lengths[i])));

  const zca = (sigma) =>
    byEigenvectors(sigma, ([first, second], [x, y]) => {
      const across = x * y * (1 / first - 1 / second);
      return [[x * x / first + y * y / second, across], [across, y * y / first + x * x / second]];
    });

  /** Coupled iterations: `root` approaches S^-1/2 and `product` the identity, with S = Sigma / tr Sigma. */
  function newtonSchulz(sigma, steps) {
    const trace = sigma[0][0] + sigma[1][1];
    let product = sigma.map((row) => row.map((entry) => entry / trace));
    let root = [[1, 0], [0, 1]];
    for (let i = 0; i < steps; i++) {
      const [[a, b], [c, d]] = multiply(root, product);
      const step = [[1.5 - 0.5 * a, -0.5 * b], [-0.5 * c, 1.5 - 0.5 * d]];
      product = multiply(product, step);
      root = multiply(step, root);
    }
    const W = root.map((row) => row.map((entry) => entry / Math.sqrt(trace)));
    return { W, unexplained: trace > 0 ? 1 : 0, tolerance: 0.5 };
  }

  const FACTORISATIONS = { cholesky, zca, pca, "newton-schulz": newtonSchulz };

  /** Why a factorisation must not be used, in words; "" if it may. */
  function refusal(found, residue) {
    const offset = Math.max(...apply(found.W, residue).map(Math.abs)); // what rounding left of the mean
    if (found.unexplained > found.tolerance && offset < MAX_OFFSET) return "";
    return "its points lie on a line, or on one point, so its covariance is singular and no W whitens it";
  }

  /**
   * Whiten one slice by its own mean and covariance.
   * Returns {mean, covariance, W, whitened, after, refused}: `covariance` before (without eps) and `after`;
   * where `refused` is not "", it says why, and W, whitened and after are null.
   */
  function whiten(points, { method, eps, steps }) {
    const n = points.length;
    const mu = mean(points);
    const rows = centred(points, mu);
    const before = n > 1 ? covariance(rows) : null;
    const nothing = { mean: mu, covariance: before, W: null, whitened: null, after: null };
    if (n < 3) {
      return { ...nothing, refused: `a covariance of ${n} points in the plane is always singular: take at least 3` };
    }
    const found = FACTORISATIONS[method](covariance(rows, eps), steps);
    const refused = refusal(found, mean(rows));
    if (refused) return { ...nothing, refused };
    const whitened = rows.map((row) => apply(found.W, row));
    const after = covariance(centred(whitened, mean(whitened)));
    return { mean: mu, covariance: before, W: found.W, whitened, after, refused };
  }

  return { METHODS, whiten, eigen };
})();
