#include <vector>

#include "fairsteer/interleave.hpp"
#include "fairsteer/maps.hpp"
#include "fairsteer/moments.hpp"
#include "problems.hpp"
#include "testing.hpp"

using namespace fairsteer;
using fairsteer::test::Random;

namespace {

struct Sums {
  Sums(CovarianceModel model, Index K, Index G, Index d)
      : weight(K * G, 0.0),
        weight_square(K * G, 0.0),
        mean(K * G * d, 0.0),
        scatter(model == CovarianceModel::tied       ? G * d * d
                : model == CovarianceModel::diagonal ? K * G * d
                                                     : K * G * d * d,
                0.0),
        cubic(K * G * d, 0.0),
        quartic(model == CovarianceModel::diagonal ? K * G * d : K * G, 0.0) {
    view = {{model, K, G, d}, weight.data(), weight_square.data(), mean.data(),
            scatter.data(),   cubic.data(),  quartic.data()};
  }
  std::vector<double> weight, weight_square, mean, scatter, cubic, quartic;
  MomentSums view{};
};

std::vector<std::int64_t> codes_of(Index n, Index cells) {
  std::vector<std::int64_t> codes;
  for (Index i = 0; i < n; ++i) codes.push_back(i % (cells + 1) - 1);  // -1 leaves a row out
  return codes;
}

template <class T>
void update(const Sums& sums, const RowsView<T>& rows, const std::int64_t* cells,
            const double* weights = nullptr, Index n_threads = 1) {
  std::vector<std::int64_t> classes, groups;
  for (Index i = 0; i < rows.rows; ++i) {
    const auto G = sums.view.n_groups;
    classes.push_back(cells[i] < 0 ? -1 : cells[i] / G);
    groups.push_back(cells[i] < 0 ? 0 : cells[i] % G);
  }
  update_moments<T>(sums.view, rows, classes.data(), groups.data(), weights, n_threads);
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

}  // namespace

TEST_CASE("moments equal the two pass formula") {
  const Index n = 700, K = 2, G = 2, d = 3;
  Random random(1);
  const Matrix rows = random.matrix(d, n);  // a column is a row of X: C order
  const auto codes = codes_of(n, K * G);
  Sums sums(CovarianceModel::full, K, G, d);
  update<double>(sums, {rows.data(), n, d, d, 1}, codes.data());
  for (Index c = 0; c < K * G; ++c) {
    double weight = 0, quartic = 0;
    Vector mean = Vector::Zero(d);
    Matrix scatter = Matrix::Zero(d, d);
    for (Index i = 0; i < n; ++i)
      if (codes[i] == c) weight += 1, mean += rows.col(i);
    mean /= weight;
    for (Index i = 0; i < n; ++i) {
      if (codes[i] != c) continue;
      const Vector y = rows.col(i) - mean;
      scatter += y * y.transpose();
      quartic += y.squaredNorm() * y.squaredNorm();
    }
    CHECK_NEAR(sums.weight[c], weight, 0);
    CHECK_NEAR((VectorView(&sums.mean[c * d], d) - mean).norm(), 0, 1e-13);
    CHECK_NEAR((MatrixView(&sums.scatter[c * d * d], d, d) - scatter).norm(), 0, 1e-10);
    CHECK_NEAR(sums.quartic[c], quartic, 1e-9 * quartic);
  }
}

TEST_CASE("every layout gives the same moments") {
  const Index n = 300, K = 1, G = 2, d = 4;
  Random random(2);
  const Matrix rows = random.matrix(d, n);
  const Matrix columns = rows.transpose();
  Matrix padded = Matrix::Zero(3 * d, 2 * n);  // every second row, every third column
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < d; ++j) padded(3 * j, 2 * i) = rows(j, i);
  const auto codes = codes_of(n, K * G);
  for (const auto model :
       {CovarianceModel::tied, CovarianceModel::full, CovarianceModel::diagonal}) {
    Sums reference(model, K, G, d), fortran(model, K, G, d), strided(model, K, G, d),
        reversed(model, K, G, d);
    update<double>(reference, {rows.data(), n, d, d, 1}, codes.data());
    update<double>(fortran, {columns.data(), n, d, 1, n}, codes.data());
    update<double>(strided, {padded.data(), n, d, 6 * d, 3}, codes.data());
    std::vector<std::int64_t> backwards(codes.rbegin(), codes.rend());
    update<double>(reversed, {rows.data() + (n - 1) * d, n, d, -d, 1}, backwards.data());
    CHECK_NEAR(largest_difference(reference.scatter, fortran.scatter), 0, 0);
    CHECK_NEAR(largest_difference(reference.scatter, strided.scatter), 0, 0);
    CHECK_NEAR(largest_difference(reference.scatter, reversed.scatter), 0, 1e-11);
    CHECK_NEAR(largest_difference(reference.quartic, reversed.quartic), 0, 1e-9);
  }
}

TEST_CASE("merging equals the moments of the union") {
  const Index n = 400, K = 2, G = 2, d = 3;
  Random random(3);
  Matrix rows = random.matrix(d, n);
  rows.array() += 1e6;  // an offset must not cost digits
  const auto codes = codes_of(n, K * G);
  std::vector<double> weights;
  for (Index i = 0; i < n; ++i) weights.push_back(random.uniform());
  weights[5] = 0;
  std::vector<std::int64_t> cells{0, 1, 2, 3};
  for (const auto model :
       {CovarianceModel::tied, CovarianceModel::full, CovarianceModel::diagonal}) {
    Sums all(model, K, G, d), first(model, K, G, d), second(model, K, G, d);
    update<double>(all, {rows.data(), n, d, d, 1}, codes.data(), weights.data());
    update<double>(first, {rows.data(), 150, d, d, 1}, codes.data(), weights.data());
    update<double>(second, {rows.data() + 150 * d, n - 150, d, d, 1}, codes.data() + 150,
                   weights.data() + 150);
    merge_moments(first.view, second.view, cells.data());
    CHECK_NEAR(largest_difference(all.weight, first.weight), 0, 1e-12);
    CHECK_NEAR(largest_difference(all.mean, first.mean), 0, 1e-9);
    CHECK_NEAR(largest_difference(all.scatter, first.scatter), 0, 1e-6);
    if (model != CovarianceModel::tied)
      CHECK_NEAR(largest_difference(all.quartic, first.quartic), 0, 1e-5);
  }
}

TEST_CASE("half and single precision rows are summed in double") {
  const Index n = 3000, d = 5;
  Random random(4);
  const Matrix rows = random.matrix(d, n);
  const MatrixOf<float> single = rows.cast<float>();
  const MatrixOf<Eigen::half> half = rows.cast<Eigen::half>();
  const Matrix half_as_double = half.cast<double>();
  const std::vector<std::int64_t> codes(n, 0);
  Sums exact(CovarianceModel::tied, 1, 1, d), from_single(CovarianceModel::tied, 1, 1, d),
      from_half(CovarianceModel::tied, 1, 1, d), exact_half(CovarianceModel::tied, 1, 1, d);
  update<double>(exact, {rows.data(), n, d, d, 1}, codes.data());
  update<float>(from_single, {single.data(), n, d, d, 1}, codes.data());
  update<Eigen::half>(from_half, {half.data(), n, d, d, 1}, codes.data());
  update<double>(exact_half, {half_as_double.data(), n, d, d, 1}, codes.data());
  CHECK_NEAR(largest_difference(exact.scatter, from_single.scatter), 0, 1e-5 * n);
  CHECK_NEAR(largest_difference(exact_half.scatter, from_half.scatter), 0, 1e-5 * n);
}

TEST_CASE("a code that is too large is refused") {
  const double x[2] = {1, 2};
  const std::int64_t codes[2] = {0, 4};
  Sums sums(CovarianceModel::tied, 2, 2, 1);
  CHECK_THROWS_AS(update<double>(sums, {x, 2, 1, 1, 1}, codes), std::invalid_argument);
  double out[2];
  const double A[2] = {1, 1}, b[2] = {0, 0};
  const MapsView<double> maps{MapKind::dense, 2, 1, A, b, b};
  CHECK_THROWS_AS(apply_maps<double>({x, 2, 1, 1, 1}, codes, maps, out), std::invalid_argument);
}

TEST_CASE("maps are applied by group and missing groups are left") {
  const Index n = 1500, d = 3, G = 2;
  Random random(5);
  const Matrix rows = random.matrix(d, n);
  const auto codes = codes_of(n, G);
  const Matrix A = random.matrix(d, d * G);  // two matrices; read in row-major order
  const Matrix b = random.matrix(d, G);
  Matrix out = Matrix::Constant(d, n, 7);
  const Matrix c = random.matrix(d, G);
  apply_maps<double>({rows.data(), n, d, d, 1}, codes.data(),
                     {MapKind::dense, G, d, A.data(), c.data(), b.data()}, out.data());
  for (Index i = 0; i < n; ++i) {
    const Vector expected =
        codes[i] < 0
            ? Vector::Constant(d, 7.0)
            : Vector(A.middleCols(codes[i] * d, d).transpose() * (rows.col(i) - c.col(codes[i])) +
                     b.col(codes[i]));
    CHECK_NEAR((out.col(i) - expected).norm(), 0, 1e-12);
  }
}

TEST_CASE("sums do not depend on the threads or on the order of reading") {
  const Index n = 12000, K = 2, G = 2;
  for (const Index d : {3, 70}) {  // read in the order of the rows, and cell by cell
    Random random(6);
    const Matrix rows = random.matrix(d, n);
    const Matrix columns = rows.transpose();
    const auto codes = codes_of(n, K * G);
    for (const auto model :
         {CovarianceModel::tied, CovarianceModel::full, CovarianceModel::diagonal}) {
      Sums one(model, K, G, d), three(model, K, G, d), staged(model, K, G, d);
      update<double>(one, {rows.data(), n, d, d, 1}, codes.data());
      update<double>(three, {rows.data(), n, d, d, 1}, codes.data(), nullptr, 3);
      update<double>(staged, {columns.data(), n, d, 1, n}, codes.data(), nullptr, 2);
      CHECK_NEAR(largest_difference(one.scatter, three.scatter), 0, 0);
      CHECK_NEAR(largest_difference(one.quartic, three.quartic), 0, 0);
      CHECK_NEAR(largest_difference(one.scatter, staged.scatter), 0, 1e-10);
      CHECK_NEAR(largest_difference(one.mean, staged.mean), 0, 1e-14);
    }
  }
}

TEST_CASE("an update of sums that hold rows equals one of all rows") {
  struct Case {
    Index d, n, K, G;
  };
  // Few features and many; cells of one task and of several.
  for (const auto& [d, n, K, G] :
       {Case{3, 3000, 2, 2}, Case{70, 3000, 2, 2}, Case{70, 15000, 1, 2}}) {
    Random random(7);
    Matrix rows = random.matrix(d, n);
    rows.array() += 1e5;
    const auto codes = codes_of(n, K * G);
    for (const auto model : {CovarianceModel::full, CovarianceModel::diagonal}) {
      Sums all(model, K, G, d), twice(model, K, G, d);
      update<double>(all, {rows.data(), n, d, d, 1}, codes.data());
      update<double>(twice, {rows.data(), 900, d, d, 1}, codes.data());
      update<double>(twice, {rows.data() + 900 * d, n - 900, d, d, 1}, codes.data() + 900);
      const auto size = static_cast<double>(n * d) / 9000;
      CHECK_NEAR(largest_difference(all.mean, twice.mean), 0, 1e-9);
      CHECK_NEAR(largest_difference(all.scatter, twice.scatter), 0, 1e-6 * size);
      CHECK_NEAR(largest_difference(all.cubic, twice.cubic), 0, 1e-4 * size);
      CHECK_NEAR(largest_difference(all.quartic, twice.quartic), 0, 1e-4 * size * size);
      if (model != CovarianceModel::full) continue;
      for (Index i = 0; i < K * G; ++i) {
        const Eigen::Map<const Matrix> scatter(twice.scatter.data() + i * d * d, d, d);
        CHECK(scatter == scatter.transpose());
      }
    }
  }
}

TEST_CASE("columns are laid out row by row") {
  Random random(8);
  for (const Index d : {1, 7, 8, 16, 33})
    for (const Index n : {0, 1, 15, 16, 50}) {
      const Matrix table = random.matrix(n, d);  // a column of X is one here
      std::vector<const double*> columns;
      for (Index j = 0; j < d; ++j) columns.push_back(table.data() + j * n);
      Matrix out = Matrix::Constant(d + 1, n, 5);
      interleave<double>(columns.data(), d, n, out.data(), d + 1);
      CHECK(out.topRows(d) == table.transpose());
      CHECK((out.row(d).array() == 5).all());
      const MatrixOf<float> narrow = table.cast<float>();
      std::vector<const float*> narrow_columns;
      for (Index j = 0; j < d; ++j) narrow_columns.push_back(narrow.data() + j * n);
      MatrixOf<float> narrow_out(d, n);
      interleave<float>(narrow_columns.data(), d, n, narrow_out.data(), d);
      CHECK(narrow_out == narrow.transpose());
    }
}
