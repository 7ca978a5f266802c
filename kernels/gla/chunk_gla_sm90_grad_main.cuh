// The warpgroups of the gradient kernel that hold the state
// (chunk_gla_sm90_grad.cuh). One class of over 500 lines: the steps of a visit
// share its registers.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_

#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradMain {
 public:
  __device__ GradMain(const GradParams& params, GradShared<C>& shared,
                      int group)
      : args_(params.args),
        shared_(shared),
        group_(group),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32),
        fragment_(SlabOffset((lane_ & 7) + ((lane_ >> 4) << 3),
                             2 * warp_ + ((lane_ >> 3) & 1))) {}

  __device__ void Run() {
    GateSegment();
    LoadState();
#pragma unroll 1
    for (int c = 0; c < shared_.work.chunks; ++c) {
      Visit</*kBackward=*/false>(c);
    }
    TurnAround();
#pragma unroll 1
    for (int c = shared_.work.chunks - 1; c >= 0; --c) {
      Visit</*kBackward=*/true>(c);
    }
  }

 private:
  using Gate = typename C::Gate;
  using Pair = typename GatePair<Gate>::Type;

  __device__ int RowsOf(int c) const {
    return shared_.work.rows.length - (shared_.work.first_chunk + c) * kChunk;
  }
  // Offset of a row's first channel of this block in a [B, T, H, K] tensor.
  __device__ int64_t KeyOffset(int c, int row) const {
    const int64_t r =
        shared_.work.rows.first + (shared_.work.first_chunk + c) * kChunk + row;
    return (r * args_.shape.H + shared_.work.h) * C::K +
           shared_.work.slice * 64;
  }

  // --- Gated operands, in the place of q, k and (16-bit) g: two warps a chunk,
  // 32 rows each, lane l channels 2 l and 2 l + 1.

  __device__ void GateSegment() {
    const int warp = group_ * 4 + warp_;
    const int c = warp / 2, half = warp % 2;
    const int rows = c < shared_.work.chunks ? RowsOf(c) - 32 * half : 0;
    if (rows > 0) BarrierWait(SharedAddress(&shared_.raw_full[c]), 0);
    Pair g[32];
    float2 total = {0, 0};
#pragma unroll
    for (int r = 0; r < 32; ++r) {
      g[r] = r < rows ? GateAt(c, 32 * half + r) : Pair{};
    }
#pragma unroll
    for (int r = 0; r < 32; ++r) {
      const float2 log2 = ToLog2(g[r]);
      total = {total.x + log2.x, total.y + log2.y};
    }
    *reinterpret_cast<float2*>(&shared_.totals[c][half][2 * lane_]) = total;
    NamedBarrier(kMainBarrier, 256);
    const float2 other =
        *reinterpret_cast<float2*>(&shared_.totals[c][1 - half][2 * lane_]);
    const float2 all = {total.x + other.x, total.y + other.y};
    const bool steep0 = all.x < -kMaxLog2Decay;
    const bool steep1 = all.y < -kMaxLog2Decay;
    if (half == 0) {
      *reinterpret_cast<float2*>(&shared_.decay[c][2 * lane_]) = {Exp2(all.x),
                                                                  Exp2(all.y)};
      shared_.steep[c][2 * lane_] = steep0;
      shared_.steep[c][2 * lane_ + 1] = steep1;
      const bool any = __any_sync(0xffffffff, steep0 || steep1);
      if (lane_ == 0) shared_.any_steep[c] = any;
    }
    GateRows(c, half, rows, g, half == 1 ? other : float2{0, 0},
             {steep0 ? all.x : 0, steep1 ? all.y : 0});
    FenceAsyncProxy();
    NamedBarrier(kAllBarrier, C::kThreads);
  }

  __device__ Pair GateAt(int c, int row) const {
    if constexpr (sizeof(Gate) == 2) {
      return *reinterpret_cast<const uint32_t*>(shared_.b[c] + Place(row));
    } else {
      return reinterpret_cast<const float2*>(
          &shared_.step[c])[row * 32 + lane_];
    }
  }
  // Where this lane's two channels of a row are in a slab.
  __device__ uint32_t Place(int row) const {
    return row * 128 + (lane_ * 4 ^ (row % 8 << 4));
  }

  __device__ void GateRows(int c, int half, int rows, const Pair (&g)[32],
                           float2 b, float2 shift) {
    constexpr int kBatch = 8;  // rows whose loads are issued together
#pragma unroll
    for (int first = 0; first < 32; first += kBatch) {
      uint32_t q[kBatch], k[kBatch];
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const uint32_t place = Place(32 * half + first + r);
        q[r] = *reinterpret_cast<const uint32_t*>(shared_.q[c] + place);
        k[r] = *reinterpret_cast<const uint32_t*>(shared_.k[c] + place);
        if (first + r >= rows) q[r] = k[r] = 0;
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const float2 log2 = ToLog2(g[first + r]);
        b = {b.x + log2.x, b.y + log2.y};
        const uint32_t place = Place(32 * half + first + r);
        *reinterpret_cast<uint32_t*>(shared_.q[c] + place) =
            PackBf16(LowFloat(q[r]) * args_.scale * Exp2(b.x),
                     HighFloat(q[r]) * args_.scale * Exp2(b.y));
        *reinterpret_cast<uint32_t*>(shared_.k[c] + place) =
            PackBf16(LowFloat(k[r]) * Exp2(shift.x - b.x),
                     HighFloat(k[r]) * Exp2(shift.y - b.y));
        *reinterpret_cast<uint32_t*>(shared_.b[c] + place) =
            __byte_perm(LogUnits(b.x), LogUnits(b.y), 0x5410);
      }
    }
  }

  // -kLogUnits b rounded to an integer of at most 16 bits, in the low half.
  static __device__ uint32_t LogUnits(float b) {
    constexpr float kIntegers = 1 << 23;  // floats from here on are integers
    return __float_as_uint(fminf(b * -kLogUnits, 65535) + kIntegers);
  }

  // --- The state.

  // Block j of this warpgroup in a stored state.
  __device__ const uint4* Tile(const __nv_bfloat16* states, int j) const {
    const int64_t head = shared_.work.slot * args_.shape.H + shared_.work.h;
    return reinterpret_cast<const uint4*>(
               states + head * (C::K * C::V) +
               (shared_.work.slice * (C::V / 64) + group_ * C::kBlocks + j) *
                   kStateTile) +
           warp_ * 128 + lane_;
  }

  __device__ void LoadState() {
#pragma unroll
    for (int j = 0; j < C::kBlocks; ++j) {
      const uint4* const tile = Tile(args_.states, j);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const uint4 part = tile[m * 32];
        const uint32_t words[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
        for (int f = 0; f < 4; ++f) {
          const int e = 4 * (2 * m + f / 2) + f % 2 * 2;
          state_[j][e] = LowFloat(words[f]);
          state_[j][e + 1] = HighFloat(words[f]);
        }
      }
    }
  }

  // The flow <S_T, dS_T> out of the segment, of every channel, and D of the
  // last chunk in the place of S. The product is taken of S before the last
  // chunk's edge and of D as rounded for the tensor cores, so that what its
  // keys add to the flow cancels exactly against their terms, however small the
  // rest is.
  __device__ void TurnAround() {
    float flow[2] = {0, 0}, edge[2], mid[2];
    LoadDecay(shared_.work.chunks - 1, edge, mid);
#pragma unroll
    for (int j = 0; j < C::kBlocks; ++j) {
      const uint4* const tile = Tile(args_.d_states, j);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const uint4 part = tile[m * 32];
        const uint32_t words[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
        for (int f = 0; f < 4; ++f) {
          const int e = 4 * (2 * m + f / 2) + f % 2 * 2;
          const float low = edge[f % 2] * LowFloat(words[f]);
          const float high = edge[f % 2] * HighFloat(words[f]);
          const uint32_t rounded = PackBf16(low, high);
          flow[f % 2] += state_[j][e] * LowFloat(rounded) +
                         state_[j][e + 1] * HighFloat(rounded);
          state_[j][e] = low;
          state_[j][e + 1] = high;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      flow[i] = QuadSum(flow[i]);
      if (lane_ % 4 == 0) shared_.flow[group_][Channel(i)] = flow[i];
    }
    NamedBarrier(kMainBarrier, 256);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      flow_[i] = shared_.flow[0][Channel(i)] + shared_.flow[1][Channel(i)];
    }
  }

  // The channels of this thread's accumulator rows.
  __device__ int Channel(int i) const { return warp_ * 16 + lane_ / 4 + 8 * i; }

  static __device__ float QuadSum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
  }

  __device__ void ScaleState(const float (&factor)[2]) {
#pragma unroll
    for (int j = 0; j < C::kBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 32; ++e) state_[j][e] *= factor[e / 2 % 2];
    }
  }

  // What the state is multiplied by after and before a chunk's update.
  __device__ void LoadDecay(int c, float (&edge)[2], float (&mid)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float decay = shared_.decay[c][Channel(i)];
      const bool steep = shared_.steep[c][Channel(i)];
      edge[i] = steep ? 1 : decay;
      mid[i] = steep ? decay : 1;
    }
  }

  // --- A chunk.

  template <bool kBackward>
  __device__ void Visit(int c) {
    float edge[2], mid[2];
    LoadDecay(c, edge, mid);
    const bool is_last = c == shared_.work.chunks - 1;  // see TurnAround
    if (kBackward && !is_last) ScaleState(edge);
    // The slab that updates the state is also the one dA is multiplied with.
    const uint64_t a =
        SlabDescriptor(SharedAddress(kBackward ? shared_.q[c] : shared_.k[c]));
    float d[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) d[i] = 0;
    const bool any_steep = shared_.any_steep[c];
    if (kBackward) AddWithin<kBackward>(c, a, d);
#pragma unroll
    for (int j = 0; j < C::kBlocks; ++j) {
      StepBlock<kBackward>(c, j, any_steep, mid, a, d);
    }
    if (!kBackward) {  // dA is formed meanwhile.
      AddWithin<kBackward>(c, a, d);
      WgmmaWait<0>();
      Touch(d);
    }
    if (!kBackward && !is_last) ScaleState(edge);
    Finish<kBackward>(c, d);
  }

  // d += state_j P_j^T and state_j = mid state_j + a Q_j, with (P, Q) = (do, v)
  // forward and (v, do) backward.
  template <bool kBackward>
  __device__ void StepBlock(int c, int j, bool any_steep, const float (&mid)[2],
                            uint64_t a, float (&d)[32]) {
    const int n = step_ + group_;
    step_ += 2;
    const int stage = n % C::kStages;
    BarrierWait(SharedAddress(&shared_.full[stage]), n / C::kStages & 1);
    auto& tiles = shared_.step[stage];
    if (RowsOf(c) < kChunk) MaskRows(RowsOf(c), tiles);
    const uint64_t p =
        SlabDescriptor(SharedAddress(kBackward ? tiles.v : tiles.d_o));
    const uint64_t q =
        SlabDescriptor(SharedAddress(kBackward ? tiles.d_o : tiles.v));
    uint32_t s[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) PackOperand(state_[j], step, s[step]);
    if (any_steep) {
#pragma unroll
      for (int e = 0; e < 32; ++e) state_[j][e] *= mid[e / 2 % 2];
    }
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      Wgmma<Contract::kAlongColumns>(
          d, s[step], StepDescriptor<Contract::kAlongColumns>(p, step), true);
    }
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      Wgmma<Contract::kAlongRows, Contract::kAlongRows>(
          state_[j], StepDescriptor<Contract::kAlongRows>(a, step),
          StepDescriptor<Contract::kAlongRows>(q, step), true);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    Touch(state_[j]);
    Touch(d);
    __syncwarp();
    if (lane_ == 0) BarrierArrive(SharedAddress(&shared_.empty[stage]));
  }

  // Zeros in rows past the sequence, whatever lies there.
  __device__ void MaskRows(int rows, typename GradShared<C>::Step& tiles) {
    const int thread = warp_ * 32 + lane_;
    for (int row = rows + thread / 8; row < kChunk; row += 16) {
      const uint32_t offset = SlabOffset(row, thread % 8);
      *reinterpret_cast<uint4*>(tiles.d_o + offset) = uint4{};
      *reinterpret_cast<uint4*>(tiles.v + offset) = uint4{};
    }
    FenceAsyncProxy();
    NamedBarrier(kGroupBarrier + group_, 128);
  }

  // Starts d += a dA^T forward, a dA backward: this warpgroup's half of the
  // contraction, since the halves of d are added anyway.
  template <bool kBackward>
  __device__ void AddWithin(int c, uint64_t a, float (&d)[32]) {
    BarrierWait(SharedAddress(&shared_.scored[c]), 0);
    const uint64_t d_a = SlabDescriptor(SharedAddress(shared_.d_a[c]));
    constexpr Contract kContract =
        kBackward ? Contract::kAlongRows : Contract::kAlongColumns;
    WgmmaFence();
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int step = 2 * group_ + s;
      Wgmma<Contract::kAlongRows, kContract>(
          d, StepDescriptor<Contract::kAlongRows>(a, step),
          StepDescriptor<kContract>(d_a, step), true);
    }
    WgmmaCommit();
  }

  // --- The end of a visit: tokens 32 group .. 32 group + 31.

  // Adds the other warpgroup's part of this one's tokens: element e of `own` is
  // element 16 group + e of the accumulator.
  __device__ void Exchange(const float (&d)[32], float (&own)[16]) {
    const int thread = warp_ * 32 + lane_;
    NamedBarrier(kMainBarrier, 256);  // Both are done with the buffers.
    float4* const to =
        reinterpret_cast<float4*>(shared_.exchange[1 - group_]) + thread;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[i * 128] = group_ == 0 ? make_float4(d[16 + 4 * i], d[17 + 4 * i],
                                              d[18 + 4 * i], d[19 + 4 * i])
                                : make_float4(d[4 * i], d[1 + 4 * i],
                                              d[2 + 4 * i], d[3 + 4 * i]);
    }
    NamedBarrier(kMainBarrier, 256);
    const float4* const from =
        reinterpret_cast<const float4*>(shared_.exchange[group_]) + thread;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 x = from[i * 128];
      own[4 * i] = (group_ == 0 ? d[4 * i] : d[16 + 4 * i]) + x.x;
      own[4 * i + 1] = (group_ == 0 ? d[4 * i + 1] : d[17 + 4 * i]) + x.y;
      own[4 * i + 2] = (group_ == 0 ? d[4 * i + 2] : d[18 + 4 * i]) + x.z;
      own[4 * i + 3] = (group_ == 0 ? d[4 * i + 3] : d[19 + 4 * i]) + x.w;
    }
    NamedBarrier(kGroupBarrier + group_, 128);  // All have read.
  }

  // The token of element e, and which of the two channels it has.
  __device__ int Token(int e) const {
    return 32 * group_ + e / 4 * 8 + lane_ % 4 * 2 + e % 2;
  }

  template <bool kBackward>
  __device__ void Finish(int c, const float (&d)[32]) {
    float4* const scratch =
        reinterpret_cast<float4*>(args_.scratch) +
        ((int64_t{blockIdx.x} * kSegmentChunks + c) * 4) * 256 + group_ * 128 +
        warp_ * 32 + lane_;
    float4 forward[4];  // the products of the way forth
    float value[16], product[16] = {};
    Exchange(d, value);
    if (kBackward) {
#pragma unroll
      for (int i = 0; i < 4; ++i) forward[i] = scratch[i * 256];
    }
    bool mild[2] = {true, true};
    if (shared_.any_steep[c]) {
      AddSteep<kBackward>(c, value, product);
      mild[0] = !shared_.steep[c][Channel(0)];
      mild[1] = !shared_.steep[c][Channel(1)];
    }
    const uint32_t operand =
        SharedAddress(kBackward ? shared_.k[c] : shared_.q[c]);
    const uint32_t logs = SharedAddress(shared_.b[c]);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const uint32_t offset = fragment_ + 2048 * (2 * group_ + s);
      uint32_t x[4], b[4];
      LoadMatrixTransposed(operand + offset, x);
      LoadMatrixTransposed(logs + offset, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = 8 * s + 2 * i;
        constexpr float kUnit = (kBackward ? 1 : -1) / kLogUnits;
        const float factor = kBackward ? 1 : args_.scale;
        const bool keep = !mild[i % 2];
        product[e] = keep ? product[e] : LowFloat(x[i]) * value[e];
        product[e + 1] = keep ? product[e + 1] : HighFloat(x[i]) * value[e + 1];
        value[e] *= keep ? 1 : Exp2((b[i] & 0xffff) * kUnit) * factor;
        value[e + 1] *= keep ? 1 : Exp2((b[i] >> 16) * kUnit) * factor;
      }
    }
    StoreRows(kBackward ? args_.dk : args_.dq, c, value);
    if (!kBackward) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scratch[i * 256] = make_float4(product[4 * i], product[4 * i + 1],
                                       product[4 * i + 2], product[4 * i + 3]);
      }
      return;
    }
    const int rows = RowsOf(c);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float w[4] = {forward[i].x, forward[i].y, forward[i].z,
                          forward[i].w};
#pragma unroll
      for (int f = 0; f < 4; ++f) {
        const int e = 4 * i + f;
        value[e] = Token(e) < rows ? w[f] - product[e] : 0;
      }
    }
    GateGradients(c, value);
  }

  // dg from the terms of this warpgroup's tokens: sums from each token on, plus
  // what flows out of the chunk.
  __device__ void GateGradients(int c, float (&term)[16]) {
    float after[2] = {0, 0};  // terms of this thread's channels behind block j
#pragma unroll
    for (int j = 3; j >= 0; --j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& first = term[4 * j + 2 * i];
        float& second = term[4 * j + 2 * i + 1];
        first += second;
        // Sums over the pairs of later lanes of the quad.
        float later = 0, all = first;
#pragma unroll
        for (int offset = 1; offset < 4; ++offset) {
          const float x = __shfl_down_sync(0xffffffff, first, offset, 4);
          if (lane_ % 4 + offset < 4) later += x;
        }
        all = __shfl_sync(0xffffffff, first + later, lane_ & ~3);
        first += later + after[i];
        second += later + after[i];
        after[i] += all;
      }
    }
    if (lane_ % 4 == 0) {
      shared_.sums[group_][Channel(0)] = after[0];
      shared_.sums[group_][Channel(1)] = after[1];
    }
    NamedBarrier(kMainBarrier, 256);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float late = shared_.sums[1][Channel(i)];
      const float base = flow_[i] + (group_ == 0 ? late : 0);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        term[4 * j + 2 * i] += base;
        term[4 * j + 2 * i + 1] += base;
      }
      flow_[i] += late + shared_.sums[0][Channel(i)];
    }
    ZeroResets(c, term);
    StoreGateGradients(c, term);
  }

  // dg is 0 where a gate is -inf.
  __device__ void ZeroResets(int c, float (&term)[16]) {
    if (!shared_.any_steep[c]) return;
    const int rows = RowsOf(c);
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      const int channel = Channel(e / 2 % 2);
      if (Token(e) < rows &&
          static_cast<float>(static_cast<const Gate*>(
              args_.g)[KeyOffset(c, Token(e)) + channel]) == -INFINITY) {
        term[e] = 0;
      }
    }
  }

  __device__ void StoreGateGradients(int c, const float (&term)[16]) {
    if constexpr (sizeof(Gate) == 2) {
      NamedBarrier(kGroupBarrier + group_, 128);  // The slab's rows are stored.
      StoreRows(static_cast<__nv_bfloat16*>(args_.dg), c, term);
    } else {
      const int rows = RowsOf(c);
      float* const dg = static_cast<float*>(args_.dg);
#pragma unroll
      for (int e = 0; e < 16; ++e) {
        if (Token(e) < rows) {
          dg[KeyOffset(c, Token(e)) + Channel(e / 2 % 2)] = term[e];
        }
      }
    }
  }

  // Rounds this warpgroup's tokens to bf16 and writes them, through the buffer
  // that it reads in Exchange.
  __device__ void StoreRows(__nv_bfloat16* tensor, int c,
                            const float (&value)[16]) {
    const uint32_t slab = SharedAddress(shared_.exchange[group_]);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = PackBf16(value[8 * s + 2 * i], value[8 * s + 2 * i + 1]);
      }
      StoreMatrixTransposed(slab + fragment_ + 2048 * s, a);
    }
    NamedBarrier(kGroupBarrier + group_, 128);
    const int thread = warp_ * 32 + lane_;
    const int rows = RowsOf(c) - 32 * group_;
#pragma unroll
    for (int it = 0; it < 2; ++it) {
      const int row = it * 16 + thread / 8;
      const uint4 data = LoadShared128(slab + SlabOffset(row, thread % 8));
      if (row < rows) {
        reinterpret_cast<uint4*>(
            tensor + KeyOffset(c, 32 * group_ + row))[thread % 8] = data;
      }
    }
  }

  // --- Steep channels: dq~ or dk^ in `value` become dq or dk, in float32 and
  // term by term, eight channels at a time from global memory. Their part of
  // the products with dA is below 2^-kMaxLog2Decay of what is added here.

  template <bool kBackward>
  __device__ void AddSteep(int c, float (&value)[16], float (&product)[16]) {
#pragma unroll 1
    for (int first = 0; first < 64; first += 8) {
      bool any = false;
#pragma unroll 1
      for (int i = 0; i < 8; ++i) any |= shared_.steep[c][first + i] != 0;
      if (!any) continue;
      NamedBarrier(kGroupBarrier + group_, 128);
      LoadChannels(c, first);
      NamedBarrier(kGroupBarrier + group_, 128);
      AccumulateGates(warp_ * 32 + lane_, shared_.channel[group_]);
      NamedBarrier(kGroupBarrier + group_, 128);
      // The channels' elements are those of one warp's rows.
      if (warp_ != first / 16) continue;
      if (shared_.steep[c][first + lane_ / 4]) {
        if (first / 8 % 2 == 0) {
          FixElements<kBackward, 0>(c, value, product);
        } else {
          FixElements<kBackward, 1>(c, value, product);
        }
      }
      __syncwarp();
    }
  }

  template <bool kBackward, int kRow>
  __device__ void FixElements(int c, float (&value)[16], float (&product)[16]) {
    const float* const b = shared_.channel[group_][0][lane_ / 4];
    const float* const q = shared_.channel[group_][1][lane_ / 4];
    const float* const k = shared_.channel[group_][2][lane_ / 4];
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      if (e / 2 % 2 != kRow) continue;
      const int token = Token(e);
      float sum = value[e] *
                  (kBackward ? Exp2(b[kChunk - 1] - b[token]) : Exp2(b[token]));
#pragma unroll 1
      for (int s = kBackward ? token : 0; s < (kBackward ? kChunk : token + 1);
           ++s) {
        const int t = kBackward ? s : token, u = kBackward ? token : s;
        const float d_a =
            __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(
                shared_.d_a[c] + SlabElement(t, u)));
        sum += d_a * (kBackward ? q[t] : k[u]) * Exp2(b[t] - b[u]);
      }
      product[e] = sum * (kBackward ? k[token] : q[token]);
      value[e] = kBackward ? sum : sum * args_.scale;
    }
  }

  __device__ void LoadChannels(int c, int first) {
    const int thread = warp_ * 32 + lane_;
    const bool valid = thread / 2 < RowsOf(c);
    const int64_t offset = KeyOffset(c, valid ? thread / 2 : 0) + first;
    LoadSteepChannels<Gate>(args_, thread, valid, offset,
                            shared_.channel[group_]);
  }

  const GradArgs& args_;
  GradShared<C>& shared_;
  const int group_, warp_, lane_;
  const uint32_t fragment_;  // this lane's place in 16 rows of a slab, as
                             // ldmatrix and stmatrix want it
  int step_ = 0;             // steps of both warpgroups so far
  float flow_[2];  // <S, dS> of this thread's channels after the chunk
  float state_[C::kBlocks][32];
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_
