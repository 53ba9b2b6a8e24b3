// The classifier product (classifier_product.h) as a CUTLASS kernel, built from the parts that gated_product.cuh
// describes, with two differences:
//
// Two pairs of operands. f_o of [h_T, h0] is h_T W_a^T + h0 W_b^T, where h_T and h0 are separate buffers. TwoPairs
// therefore has two TMA descriptors for each operand and runs the load loop of CUTLASS's main loop twice per tile, for
// the first pair and then for the second. To the consumers it is one longer sum, because the pipeline's stage counter
// continues. Each half is rounded up to whole steps; TMA fills the remainder with zeros.
//
// No output matrix. The epilogue's output type is void; its last node keeps one sum over the tile's columns for each
// row that a thread sees. Four neighbouring lanes share a row of a wgmma accumulator and no other thread of the tile
// has elements of it, so two shuffles finish the sum and one lane stores it.
// tests/support/native/classifier_product_arguments.cu checks CUTLASS's layouts for this.
#pragma once

#include "classifier_product_plan.h"
#include "gated_product.cuh"

namespace ssgrl::cuda {

// A main loop over two pairs of operands, [M, K] x [N, K] each. The K of the problem is twice the K of a pair rounded
// up to whole steps.
template <class Base>
struct TwoPairs : Base {
  static constexpr int kDepth = cute::size<2>(typename Base::TileShape{});

  static int steps(int depth) { return (depth + kDepth - 1) / kDepth; }

  struct Arguments {
    int depth;  // K of a pair
    typename Base::Arguments pair[2];
  };

  struct Params : Base::Params {
    typename Base::Params second;
    int steps;  // of a pair
  };

  template <class Problem>
  static auto pair_problem(Problem problem, const Arguments& a) {
    cute::get<2>(problem) = a.depth;
    return problem;
  }

  template <class Problem>
  static Params to_underlying_arguments(const Problem& problem, const Arguments& a, void* workspace) {
    const auto of = [&](int pair) {
      return Base::to_underlying_arguments(pair_problem(problem, a), a.pair[pair], workspace);
    };
    return {of(0), of(1), steps(a.depth)};
  }

  template <class Problem>
  static bool can_implement(const Problem& problem, const Arguments& a) {
    return Base::can_implement(pair_problem(problem, a), a.pair[0]) &&
           Base::can_implement(pair_problem(problem, a), a.pair[1]);
  }

  CUTLASS_DEVICE static void prefetch_tma_descriptors(const Params& params) {
    Base::prefetch_tma_descriptors(params);
    Base::prefetch_tma_descriptors(params.second);
  }

  // The coordinates in `inputs` are valid for both pairs: a copy takes its addresses from the descriptor, and each pair
  // starts at its own step 0.
  template <class Inputs, class Coordinates, class Step>
  CUTLASS_DEVICE void load(
      const Params& params, typename Base::MainloopPipeline pipeline, typename Base::PipelineState state,
      const Inputs& inputs, const Coordinates& tile, Step first_step, int steps, int thread, uint32_t block_in_cluster,
      typename Base::TensorStorage& shared) {
    const int in_first = cute::min(steps, params.steps);
    Base::load(params, pipeline, state, inputs, tile, first_step, in_first, thread, block_in_cluster, shared);
    state.advance(in_first);
    Base::load(
        params.second, pipeline, state, inputs, tile, first_step, steps - in_first, thread, block_in_cluster, shared);
  }
};

// The last node of the visitor tree: sum_n tanh(accumulator + bias_o) weight_c over the tile's columns, per row.
template <class T>
struct ClassSums {
  using ElementAux = T;  // CUTLASS requires an output type, although there is no output
  struct SharedStorage {};
  struct Arguments {
    const T* weight;  // [C, O]
    float* partial;   // [parts, R]
    int classes;
  };
  using Params = Arguments;

  template <class Problem>
  static constexpr Params to_underlying_arguments(const Problem&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class Problem>
  static bool can_implement(const Problem&, const Arguments&) {
    return true;
  }
  template <class Problem>
  static size_t get_workspace_size(const Problem&, const Arguments&) {
    return 0;
  }
  template <class Problem>
  static cutlass::Status initialize_workspace(
      const Problem&, const Arguments&, void*, cudaStream_t, cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }

  Params params;

  CUTLASS_HOST_DEVICE ClassSums() {}
  CUTLASS_HOST_DEVICE ClassSums(const Params& params, const SharedStorage&) : params(params) {}

  CUTLASS_DEVICE bool is_producer_load_needed() const { return false; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return false; }

  template <class... Args>
  CUTLASS_DEVICE auto get_producer_load_callbacks(const fusion::ProducerLoadArgs<Args...>&) {
    return fusion::EmptyProducerLoadCallbacks{};
  }

  // Layout: (fragment, subtiles down, subtiles across) -> (row, column), counted from the thread's first element, all
  // compile-time constants.
  template <class Layout>
  struct ConsumerStoreCallbacks : fusion::EmptyConsumerStoreCallbacks {
    static constexpr int kFragment = decltype(cute::size<0>(Layout{}))::value;
    static constexpr int kPairs = kFragment / 2;  // of neighbouring columns
    static constexpr int kDown = decltype(cute::size<1>(Layout{}))::value;
    static constexpr int kAcross = decltype(cute::size<2>(Layout{}))::value;
    static constexpr int kRows = 2 * kDown;  // wgmma gives a thread two rows, 8 apart

    CUTLASS_HOST_DEVICE static constexpr int row_at(int i, int down, int across) {
      return cute::get<0>(Layout{}(i, down, across));
    }
    CUTLASS_HOST_DEVICE static constexpr int column_at(int i, int down, int across) {
      return cute::get<1>(Layout{}(i, down, across));
    }
    CUTLASS_HOST_DEVICE static constexpr int row_of(int sum) { return row_at(0, sum / 2, 0) + sum % 2 * 8; }
    CUTLASS_HOST_DEVICE static constexpr int sum_of(int i, int down) {
      return 2 * down + (row_at(i, down, 0) != row_at(0, down, 0));
    }
    CUTLASS_HOST_DEVICE static constexpr bool as_assumed() {
      for (int across = 0; across < kAcross; ++across) {
        for (int down = 0; down < kDown; ++down) {
          for (int i = 0; i < kFragment; ++i) {
            const bool own_row = row_at(i, down, across) == row_of(sum_of(i, down));
            const bool beside = row_at(i, down, across) == row_at(i - i % 2, down, across) &&
                                column_at(i, down, across) == column_at(i - i % 2, down, across) + i % 2;
            if (!own_row || !beside) {
              return false;
            }
          }
        }
      }
      return true;
    }
    static_assert(as_assumed(), "an accumulator's fragment is not pairs of columns in two rows 8 apart");

    int rows, columns;  // of the matrix, from the thread's first element on
    const T* weight[kRows];
    float* partial;
    float sums[kRows];
    uint32_t now[kPairs], ahead[kPairs];  // elements of weight_c for this subtile and for the next

    CUTLASS_DEVICE ConsumerStoreCallbacks(
        const Params& params, int row, int column, int all_rows, int all_columns, int part)
        : rows(all_rows - row),
          columns(all_columns - column),
          partial(params.partial + int64_t{part} * all_rows + row) {
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < kRows; ++k) {
        // rows past R read the weights of some class as well; their sums are not stored
        weight[k] = params.weight + int64_t{(row + row_of(k)) % params.classes} * all_columns + column;
        sums[k] = 0.0f;
      }
    }

    // Loads `ahead`. O is even, so a pair of columns is either inside the matrix or outside.
    CUTLASS_DEVICE void fetch(int down, int across) {
      CUTLASS_PRAGMA_UNROLL
      for (int pair = 0; pair < kPairs; ++pair) {
        const int column = column_at(2 * pair, down, across);
        const T* const from = weight[sum_of(2 * pair, down)] + column;
        ahead[pair] = column < columns ? __ldg(reinterpret_cast<const uint32_t*>(from)) : 0;
      }
    }

    CUTLASS_DEVICE void begin() { fetch(0, 0); }

    // Subtiles are visited column by column. The elements of the next one are requested before this one is computed.
    CUTLASS_DEVICE void previsit(int down, int across, int, bool) {
      CUTLASS_PRAGMA_UNROLL
      for (int pair = 0; pair < kPairs; ++pair) {
        now[pair] = ahead[pair];
      }
      const int next = across * kDown + down + 1;
      if (next < kDown * kAcross) {
        fetch(next % kDown, next / kDown);
      }
    }

    template <class Sum, int N>
    CUTLASS_DEVICE cutlass::Array<float, N> visit(
        const cutlass::Array<Sum, N>& fragment, int, int down, int across, const cutlass::Array<Sum, N>& products,
        const cutlass::Array<float, N>& bias) {
      static_assert(N == kFragment, "a subtile must be one fragment of a thread");
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < N; ++i) {
        const auto pair = reinterpret_cast<const cutlass::Array<T, 2>&>(now[i / 2]);
        const float term = ClassTerm<TanhOf<T>>{}(products[i], bias[i], static_cast<float>(pair[i % 2]));
        sums[sum_of(i, down)] += column_at(i, down, across) < columns ? term : 0.0f;
      }
      return fragment;
    }

    CUTLASS_DEVICE void end() {
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < kRows; ++k) {
        float sum = sums[k];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (threadIdx.x % 4 == 0 && row_of(k) < rows) {
          partial[row_of(k)] = sum;
        }
      }
    }
  };

  template <bool ReferenceSrc, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(const fusion::ConsumerStoreArgs<Args...>& args) {
    const auto layout = cute::group<0, 3>(args.tCcD.layout());
    const int all_rows = cute::get<0>(args.problem_shape_mnkl), all_columns = cute::get<1>(args.problem_shape_mnkl);
    const int row = all_rows - static_cast<int>(cute::get<0>(args.residue_tCcD));
    const int column = all_columns - static_cast<int>(cute::get<1>(args.residue_tCcD));
    return ConsumerStoreCallbacks<cute::remove_cvref_t<decltype(layout)>>(
        params, row, column, all_rows, all_columns, cute::get<1>(args.tile_coord_mnkl));
  }
};

// Reduces the epilogue's shared memory: one stage each for operand C and the output, which are both absent. CUTLASS's
// default reserves space for an output, which would cost the main loop of the largest tile one stage.
template <class>
struct SmallEpilogue;
template <int C, int D, int Fragment, bool Reuse, bool Delay, class... Rest>
struct SmallEpilogue<cutlass::epilogue::collective::CollectiveEpilogue<
    cutlass::epilogue::Sm90TmaWarpSpecialized<C, D, Fragment, Reuse, Delay>, Rest...>> {
  using Epilogue = cutlass::epilogue::collective::CollectiveEpilogue<
      cutlass::epilogue::Sm90TmaWarpSpecialized<1, 1, Fragment, false, false>, Rest...>;
};

template <class T, class Config>
struct Classifier {
  static constexpr int kAligned = 128 / cutlass::sizeof_bits<T>::value;
  using Tree = fusion::Sm90EVT<ClassSums<T>, fusion::Sm90AccFetch, Bias<T, Config, _0>>;
  using Epilogue = typename SmallEpilogue<typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, typename Config::Block, typename Config::Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, T, Shared, kAligned, void, Shared, kAligned,
      typename Config::Epilogue, Tree>::CollectiveOp>::Epilogue;
  using Mainloop = TwoPairs<typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, T, Shared, kAligned, T, Shared, kAligned, float,
      typename Config::Block, typename Config::Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      typename Config::Mainloop>::CollectiveOp>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static typename Gemm::Arguments arguments(const ClassifierProduct& p, const Place& place) {
    const int dim = static_cast<int>(p.dim);
    const T* const weight = static_cast<const T*>(p.weight_o);
    typename Gemm::Arguments a{};
    a.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    a.problem_shape = cute::make_shape(
        static_cast<int>(p.rows), static_cast<int>(p.outputs), 2 * Mainloop::steps(dim) * Mainloop::kDepth, 1);
    a.mainloop.depth = dim;
    for (int pair = 0; pair < 2; ++pair) {
      auto& operands = a.mainloop.pair[pair];
      operands.ptr_A = static_cast<const T*>(pair == 0 ? p.h_T : p.h0);
      cute::get<0>(operands.dA) = p.dim;
      operands.ptr_B = weight + pair * p.dim;
      cute::get<0>(operands.dB) = 2 * p.dim;
    }
    // CUTLASS builds a descriptor of C even where C is not used; it needs a valid address.
    a.epilogue.ptr_C = static_cast<const T*>(p.h_T);
    cute::get<0>(a.epilogue.dC) = p.outputs;
    a.epilogue.thread.op_1 = {static_cast<const T*>(p.bias_o), T(0), {}};
    a.epilogue.thread.op_2 = {static_cast<const T*>(p.weight_c), p.partial, static_cast<int>(p.classes)};
    a.hw_info.device_id = place.device;
    a.hw_info.sm_count = place.multiprocessors;
    return a;
  }
};

}  // namespace ssgrl::cuda
