// e^v and tanh of vectors.
#pragma once

#include "simd.h"

namespace simd {

// e^v to about 1 unit in the last place, for v <= 88: 2^n * e^r with |r| <= log(2) / 2 and a Taylor polynomial for e^r,
// whose seventh-order remainder is below 1e-8. Below -87 the result is 0; NaN stays NaN.
inline Vec exp(Vec v) {
  const Vec n = nearest(mul(higher(set(-87.0f), v), set(1.44269504f)));
  // log(2) in two parts, the first of which times n is exact.
  const Vec r = fma(n, set(2.12194440e-4f), fma(n, set(-0.693359375f), higher(set(-87.0f), v)));
  Vec p = set(1.0f / 5040);
  p = fma(p, r, set(1.0f / 720));
  p = fma(p, r, set(1.0f / 120));
  p = fma(p, r, set(1.0f / 24));
  p = fma(p, r, set(1.0f / 6));
  p = fma(p, r, set(0.5f));
  p = fma(p, r, set(1.0f));
  p = fma(p, r, set(1.0f));
  return choose(not_at_most(v, set(-87.0f)), times_power_of_two(p, n), zero());
}

// e^v for v <= 0 as one of many that are added up: above -10 to 2e-7 of itself (7e-7 without fused multiply-add), e^-87
// below -87, anything where v is NaN. The polynomial is a minimax one.
inline Vec exp_for_sum(Vec v) {
  const Vec big = set(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, which is in the lowest bits
  const Vec x = higher(set(-87.0f), v);
  const Vec shifted = fma(x, set(1.44269504f), big);
  const Vec r = fma(sub(shifted, big), set(-0.693147181f), x);
  Vec p = set(8.290272e-3f);
  p = fma(p, r, set(4.189816e-2f));
  p = fma(p, r, set(0.16667639f));
  p = fma(p, r, set(0.49999148f));
  p = fma(p, r, set(0.9999997f));
  p = fma(p, r, set(1.0f));
  return raise_exponent(p, shifted);
}

// tanh to a few units in the last place of the result's largest value: a Taylor polynomial near zero, else from e^2|v|.
inline Vec tanh(Vec v) {
  const Vec size = higher(v, sub(zero(), v));
  const Vec e = exp(lower(set(40.0f), mul(size, set(2.0f))));  // in this order NaN stays
  const Vec far = sub(set(1.0f), div(set(2.0f), add(e, set(1.0f))));
  const Vec square = mul(v, v);
  Vec near = set(62.0f / 2835);
  near = fma(near, square, set(-17.0f / 315));
  near = fma(near, square, set(2.0f / 15));
  near = fma(near, square, set(-1.0f / 3));
  near = fma(mul(near, square), v, v);
  const Vec signed_far = choose(above(zero(), v), sub(zero(), far), far);
  return choose(above(set(0.2f), size), near, signed_far);
}

}  // namespace simd
