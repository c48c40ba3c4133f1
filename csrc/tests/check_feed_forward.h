// Random calls of the top-k down-projection, token by token against the definition in double.
#pragma once

#include <numeric>

#include "../feed_forward.h"
#include "guarded.h"

template <typename T>
std::vector<double> projected(const Tensor<T>& hidden, const Tensor<T>& rows, const Line<T>& bias, const FeedForward& f,
                              int64_t token) {
  std::vector<double> out(f.d_model, 0.0);
  std::vector<int32_t> order(f.d_ff);
  std::iota(order.begin(), order.end(), 0);
  for (int32_t i : order)
    if (std::isnan(hidden.at(0, 0, token, i))) return std::vector<double>(f.d_model, NAN);
  std::stable_sort(order.begin(), order.end(), [&](int32_t i, int32_t j) {
    return std::fabs(hidden.at(0, 0, token, i)) > std::fabs(hidden.at(0, 0, token, j));
  });
  for (int64_t e = 0; e < bias.size(); ++e) out[e] = number(bias[e]);
  for (int64_t i = 0; i < f.k; ++i) {
    const double weight = hidden.at(0, 0, token, order[i]);
    if (weight != 0) add_times(out, weight, rows.row(0, 0, order[i]));
  }
  return out;
}

// False, and says why, where a call does not give what it should.
template <typename T>
bool check_feed_forward(Random& r) {
  constexpr int64_t kTokens[] = {0, 1, 2, 5, 17, 40}, kHidden[] = {1, 7, 16, 17, 40, 129, 1030, 1531};
  FeedForward f{};
  f.bf16 = sizeof(T) != sizeof(float);
  f.tokens = r.one_of(kTokens), f.d_ff = r.one_of(kHidden), f.d_model = 8 * r.between(1, 40);
  f.k = std::min(r.between(1, 60), f.d_ff);
  f.threads = static_cast<int>(r.between(1, 4));
  const Tensor<T> hidden(r, 1, 1, f.tokens, f.d_ff), rows(r, 1, 1, f.d_ff, f.d_model);
  const Line<T> bias(r.once_in(2) ? f.d_model : 0, stored<T>(0.5f)), out(f.tokens * f.d_model, stored<T>(kNaN));
  const bool levels = r.once_in(2);  // many of the same magnitude, and zeros
  hidden.fill([&] { return r.once_in(20000) ? kNaN : levels ? static_cast<float>(r.between(-3, 3)) : r.real(); });
  rows.fill([&] { return r.real(); });
  f.hidden = hidden.strided(), f.rows = rows.strided();
  f.bias = reinterpret_cast<const char*>(bias.data()), f.out = reinterpret_cast<char*>(out.data());
  feed_forward::project<T>(f);
  for (int64_t t = 0; t < f.tokens; ++t)
    if (!same_row<T>(out.data() + t * f.d_model, projected(hidden, rows, bias, f, t), "token")) return false;
  return true;
}

// Pieces of memory are the same as their copy, until one byte of them changes.
inline bool check_same_pieces(Random& r) {
  const int64_t count = r.between(1, 60), size = r.between(1, 40), step = size + r.between(0, 9);
  const Line<char> pieces((count - 1) * step + size, 0), copy(count * size, 0);
  for (int64_t i = 0; i < pieces.size(); ++i) pieces[i] = static_cast<char>(r.between(0, 100));
  for (int64_t i = 0; i < copy.size(); ++i) copy[i] = pieces[i / size * step + i % size];
  const auto same = [&] { return feed_forward::same_pieces(pieces.data(), step, count, size, copy.data()); };
  if (!same()) return wrong("pieces are the same");
  ++copy[r.between(0, copy.size() - 1)];
  return !same() || wrong("a change was missed");
}
