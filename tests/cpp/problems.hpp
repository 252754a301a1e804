// Small random problems, the same on every platform: a linear congruential generator, no <random>
// distributions (whose output the standard leaves open).
#pragma once

#include <Eigen/Dense>  // independent of what the core computes with
#include <cmath>
#include <cstdint>
#include <vector>

#include "fairsteer/ideal.hpp"

namespace fairsteer::test {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2862933555777941757ULL + 3037000493ULL) {}
  double uniform() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<double>(state_ >> 11) * 0x1.0p-53;
  }
  double normal() {
    return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform());
  }
  Matrix matrix(Index rows, Index cols) {
    Matrix m(rows, cols);
    for (Index i = 0; i < m.size(); ++i) m.data()[i] = normal();
    return m;
  }
  Matrix covariance(Index d) {
    const Matrix root = matrix(d, 2 * d + 1);
    return root * root.transpose() / static_cast<double>(2 * d + 1);
  }

 private:
  std::uint64_t state_;
};

/// Owns what a Subgroups only views.
struct Problem {
  Problem(CovarianceModel model, Index K, Index G, Index d, std::uint64_t seed) {
    Random random(seed);
    Matrix weight(K, G);
    for (Index i = 0; i < weight.size(); ++i) weight.data()[i] = 0.5 + random.uniform();
    const Matrix mean = random.matrix(d, K * G);
    means.assign(mean.data(), mean.data() + mean.size());
    const Index n = model == CovarianceModel::tied ? G : K * G;
    for (Index i = 0; i < n; ++i) {
      const Matrix covariance = random.covariance(d);
      if (model == CovarianceModel::diagonal)
        for (Index j = 0; j < d; ++j) covariances.push_back(covariance(j, j));
      else
        covariances.insert(covariances.end(), covariance.data(), covariance.data() + d * d);
    }
    subgroups = {model, K, G, d, weight / weight.sum(), means.data(), covariances.data()};
  }

  std::vector<double> means;
  std::vector<double> covariances;
  Subgroups subgroups;
};

}  // namespace fairsteer::test
