// The functions of csrc/cuda/common/intrinsics.cuh in plain C++; included there, inside its namespace, where they are
// described.

template <class Type>
uint32_t pack_emulated(float low, float high) {
  return static_cast<uint32_t>(Type(low).x) | static_cast<uint32_t>(Type(high).x) << 16;
}
inline uint32_t pack(float low, float high, f16) { return pack_emulated<c10::Half>(low, high); }
inline uint32_t pack(float low, float high, bf16) { return pack_emulated<c10::BFloat16>(low, high); }

// Operand `half` (0 or 1) of a packed pair.
template <class Type>
float unpack_emulated(uint32_t pair, int half) {
  return static_cast<float>(Type(static_cast<unsigned short>(pair >> (16 * half)), Type::from_bits()));
}

template <class Tag>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag) {
  using Type = typename Tag::type;
  const emulator::Slot slot = emulator::meet(
      "mma_16x8x16", 0xffffffffu,
      [&](emulator::Slot& own) {
        std::memcpy(own.in, a, sizeof a);
        std::memcpy(own.in + 4, b, sizeof b);
      },
      [](emulator::Meeting& all) {
        float left[16][16], right[16][8];
        for (int i = 0; i < 32; ++i) {
          const uint32_t* in = all.slots[i].in;
          const int g = i / 4, t = i % 4;
          for (int half = 0; half < 2; ++half) {
            left[g][2 * t + half] = unpack_emulated<Type>(in[0], half);
            left[g + 8][2 * t + half] = unpack_emulated<Type>(in[1], half);
            left[g][2 * t + 8 + half] = unpack_emulated<Type>(in[2], half);
            left[g + 8][2 * t + 8 + half] = unpack_emulated<Type>(in[3], half);
            right[2 * t + half][g] = unpack_emulated<Type>(in[4], half);
            right[2 * t + 8 + half][g] = unpack_emulated<Type>(in[5], half);
          }
        }
        float sums[16][8] = {};
        for (int row = 0; row < 16; ++row) {
          for (int k = 0; k < 16; ++k) {
            for (int column = 0; column < 8; ++column) {
              sums[row][column] += left[row][k] * right[k][column];
            }
          }
        }
        for (int i = 0; i < 32; ++i) {
          const int g = i / 4, t = i % 4;
          const float own[4] = {sums[g][2 * t], sums[g][2 * t + 1], sums[g + 8][2 * t], sums[g + 8][2 * t + 1]};
          std::memcpy(all.slots[i].out, own, sizeof own);
        }
      });
  for (int i = 0; i < 4; ++i) {
    float sum;
    std::memcpy(&sum, &slot.out[i], sizeof sum);
    d[i] += sum;
  }
}

template <int count>
void ldmatrix_emulated(uint32_t (&r)[count], const void* row, bool transposed) {
  const auto address = reinterpret_cast<uintptr_t>(row);
  if (emulator::lane() < 8 * count && address % 16 != 0) {
    emulator::fail("ldmatrix: the address of a row is not a multiple of 16");
  }
  const emulator::Slot slot = emulator::meet(
      "ldmatrix", 0xffffffffu, [&](emulator::Slot& own) { std::memcpy(own.in, &address, sizeof address); },
      [transposed](emulator::Meeting& all) {
        for (int matrix = 0; matrix < count; ++matrix) {
          uint16_t elements[8][8];
          for (int i = 0; i < 8; ++i) {
            uintptr_t from;
            std::memcpy(&from, all.slots[8 * matrix + i].in, sizeof from);
            std::memcpy(elements[i], reinterpret_cast<const void*>(from), sizeof elements[i]);
          }
          for (int i = 0; i < 32; ++i) {
            const int a = i / 4, b = i % 4 * 2;
            const uint32_t low = transposed ? elements[b][a] : elements[a][b];
            const uint32_t high = transposed ? elements[b + 1][a] : elements[a][b + 1];
            all.slots[i].out[matrix] = low | high << 16;
          }
        }
      });
  std::memcpy(r, slot.out, sizeof r);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { ldmatrix_emulated(r, row, false); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { ldmatrix_emulated(r, row, true); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) { ldmatrix_emulated(r, row, false); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) { ldmatrix_emulated(r, row, true); }

// Copies are made no sooner than a wait asks for them, so that reading too early reads what was there before.
inline void cp_async_emulated(void* shared, const void* global, int bytes, int width) {
  if (reinterpret_cast<uintptr_t>(shared) % width != 0 ||
      (bytes > 0 && reinterpret_cast<uintptr_t>(global) % width != 0)) {
    emulator::fail("cp.async: an address is not a multiple of " + std::to_string(width));
  }
  if (bytes < 0 || bytes > width) {
    emulator::fail("cp.async: " + std::to_string(bytes) + " bytes, not 0 to " + std::to_string(width));
  }
  auto& thread = emulator::state().threads[emulator::state().current];
  thread.copies.push_back({shared, global, bytes, width, thread.group});
}
inline void cp_async_16(void* shared, const void* global, int bytes) { cp_async_emulated(shared, global, bytes, 16); }
inline void cp_async_8(void* shared, const void* global, int bytes) { cp_async_emulated(shared, global, bytes, 8); }
inline void cp_async_commit() { ++emulator::state().threads[emulator::state().current].group; }
template <int newest>
void cp_async_wait() {
  auto& thread = emulator::state().threads[emulator::state().current];
  std::vector<emulator::Copy> left;
  for (const auto& copy : thread.copies) {
    if (copy.group >= thread.group - newest) {
      left.push_back(copy);
    } else {
      std::memset(copy.to, 0, copy.width);
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
  thread.copies = left;
}

// y off by the relative error that is allowed, up or down by a bit of a hash of x.
inline float worst(float y, float x, float error) {
  const uint32_t hash = __float_as_uint(x) * 2654435761u;
  return y * (hash >> 31 ? 1.f + error : 1.f - error);
}
inline float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.f, x) : x; }
inline float tanh_fast(float x) {
  const float y = std::tanh(x);
  return y == 1.f || y == -1.f ? y : worst(y, x, 0x1p-11f);
}
inline float exp2_fast(float x) { return flushed(worst(std::exp2(flushed(x)), x, 0x1p-22f)); }
inline float reciprocal_fast(float x) { return flushed(worst(1.f / flushed(x), x, 0x1p-23f)); }
