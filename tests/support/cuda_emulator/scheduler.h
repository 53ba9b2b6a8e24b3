// The emulator's threads: every thread of a block is a fiber, the blocks of a grid run one after another.
//
// A thread runs until it waits at a collective; a fiber whose thread has ended takes the next one that has not begun,
// so that kernels without collectives run in a plain loop. Fibers begin by ucontext and switch by _setjmp and _longjmp,
// which make no system call. A fault (divergence, a bad address) is a sentence: the launch throws std::runtime_error.

#pragma once

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ssgrl::emulator {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 * 1024;
constexpr size_t kSharedLimit = 163 * 1024;  // of compute capability 8.0, the smallest that is compiled for
constexpr size_t kFence = 256;               // bytes behind the dynamic shared memory that no kernel may touch

struct Fiber {
  ucontext_t context;
  jmp_buf at;
  void* stack = nullptr;
  bool begun = false;
};

// What one lane brings to a collective of its warp, and what it takes away.
struct Slot {
  uint32_t in[8];
  uint32_t out[8];
};

struct Meeting {
  const char* kind;
  uint32_t mask, arrived;
  int unread;
  bool complete;
  Slot slots[kWarp];
};

struct Copy {
  void* to;
  const void* from;
  int bytes, width, group;
};

struct Thread {
  Fiber* fiber = nullptr;
  bool done = false;
  const char* waits = nullptr;
  std::vector<Copy> copies;  // cp.async that no wait has completed
  int group = 0;
};

struct Barrier {
  const char* kind = nullptr;
  int arrived = 0, count = 0, result = 0;
  long generation = 0;
};

struct State {
  std::function<void()> kernel;
  std::function<void(int)> place;  // sets threadIdx
  std::vector<Thread> threads;
  std::vector<std::vector<Meeting*>> open;  // by warp
  std::vector<std::unique_ptr<Meeting>> meetings;
  std::vector<Meeting*> spare;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  std::deque<int> ready;
  std::vector<unsigned char> shared;
  Barrier barrier;
  Fiber* running = nullptr;
  jmp_buf scheduler;
  std::string fault;
  int current = 0, begun = 0, done = 0;
  bool inside = false;
  bool backwards = false;  // threads begin with the last: what a missing barrier leaves open comes out otherwise
};

inline State& state() {
  static State* one = new State;  // never destroyed: fibers refer to it
  return *one;
}

inline int lane() { return state().current % kWarp; }

[[noreturn]] inline void fail(const std::string& sentence) {
  State& s = state();
  if (!s.inside) {
    throw std::runtime_error(sentence);
  }
  s.fault = "thread " + std::to_string(s.current) + ": " + sentence;
  _longjmp(s.scheduler, 1);
}

inline void leave() {
  State& s = state();
  if (_setjmp(s.running->at) == 0) {
    _longjmp(s.scheduler, 1);
  }
}

// The running thread waits at a collective until another one puts it among the ready.
inline void wait(const char* kind) {
  state().threads[state().current].waits = kind;
  leave();
  state().threads[state().current].waits = nullptr;
}

inline void set_current(int thread) {
  State& s = state();
  s.current = thread;
  s.place(thread);
}

inline void end_thread() {
  State& s = state();
  s.threads[s.current].done = true;
  ++s.done;
  if (s.barrier.arrived > 0) {
    fail(std::string("leaves the kernel while others wait at ") + s.barrier.kind);
  }
  for (const Meeting* meeting : s.open[s.current / kWarp]) {
    if (meeting->mask >> lane() & 1) {
      fail(std::string("leaves the kernel while its warp waits for it at ") + meeting->kind);
    }
  }
}

inline void fiber_body() {
  State& s = state();
  for (;;) {
    Fiber* const own = s.running;
    while (s.begun < static_cast<int>(s.threads.size())) {
      const int count = static_cast<int>(s.threads.size()), next = s.begun++;
      set_current(s.backwards ? count - 1 - next : next);
      s.threads[s.current].fiber = own;
      s.kernel();
      end_thread();
    }
    s.idle.push_back(own);
    leave();
  }
}

inline Fiber* idle_fiber() {
  State& s = state();
  if (s.idle.empty()) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fiber->stack == MAP_FAILED) {
      throw std::runtime_error("no memory for the stack of an emulated thread");
    }
    mprotect(fiber->stack, 4096, PROT_NONE);
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = kStack;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, fiber_body, 0);
    s.idle.push_back(fiber.get());
    s.fibers.push_back(std::move(fiber));
  }
  Fiber* fiber = s.idle.back();
  s.idle.pop_back();
  return fiber;
}

inline void resume(Fiber* fiber) {
  State& s = state();
  s.running = fiber;
  if (_setjmp(s.scheduler) == 0) {
    if (fiber->begun) {
      _longjmp(fiber->at, 1);
    }
    fiber->begun = true;
    setcontext(&fiber->context);
  }
}

// While it lives, an access of memory that is not there is a fault of the kernel and not the end of the process.
class AccessGuard {
 public:
  AccessGuard() {
    struct sigaction own = {};
    own.sa_handler = [](int) { fail("reads or writes outside its arrays"); };
    own.sa_flags = SA_NODEFER | SA_ONSTACK;
    sigaction(SIGSEGV, &own, &before_);
  }
  ~AccessGuard() { sigaction(SIGSEGV, &before_, nullptr); }

 private:
  struct sigaction before_;
};

inline void drop_fibers() {  // after a fault some of them are in the middle of a kernel
  State& s = state();
  for (const auto& fiber : s.fibers) {
    munmap(fiber->stack, kStack);
  }
  s.fibers.clear();
  s.idle.clear();
}

inline std::string stuck() {
  const State& s = state();
  std::string text = "the block cannot go on:";
  int named = 0;
  for (size_t i = 0; i < s.threads.size() && named < 4; ++i) {
    if (!s.threads[i].done && (i == 0 || s.threads[i].waits != s.threads[i - 1].waits)) {
      text += " thread " + std::to_string(i) + " waits at " + s.threads[i].waits + ",";
      ++named;
    }
  }
  return text + " and no other thread will arrive there";
}

inline void run_block(int threads, size_t shared_bytes) {
  State& s = state();
  s.threads.assign(threads, Thread());
  s.open.assign((threads + kWarp - 1) / kWarp, {});
  s.spare.clear();
  for (const auto& meeting : s.meetings) {
    s.spare.push_back(meeting.get());
  }
  s.ready.clear();
  s.barrier = Barrier();
  s.begun = s.done = 0;
  s.fault.clear();
  std::memset(s.shared.data(), 0xff, s.shared.size());  // NaN in every floating type: nothing may be read unwritten
  s.inside = true;
  while (s.fault.empty() && s.done < threads) {
    if (s.begun < threads) {
      resume(idle_fiber());
    } else if (!s.ready.empty()) {
      set_current(s.ready.front());
      s.ready.pop_front();
      resume(s.threads[s.current].fiber);
    } else {
      s.fault = stuck();
    }
  }
  s.inside = false;
  for (size_t i = shared_bytes; s.fault.empty() && i < s.shared.size(); ++i) {
    if (s.shared[i] != 0xff) {
      s.fault = "the kernel writes behind its " + std::to_string(shared_bytes) + " bytes of dynamic shared memory";
    }
  }
  if (!s.fault.empty()) {
    drop_fibers();
    throw std::runtime_error("emulated kernel: " + s.fault);
  }
}

// A collective of the lanes in mask: deposit(slot) by each, finish(meeting) by the last to arrive, then slot.out is the
// result of each lane. Returns a copy of the lane's own slot.
template <class Deposit, class Finish>
Slot meet(const char* kind, uint32_t mask, Deposit deposit, Finish finish) {
  State& s = state();
  const int self = s.current, base = self / kWarp * kWarp, own = lane();
  if (!(mask >> own & 1)) {
    fail(std::string(kind) + ": the mask leaves out the lane that calls");
  }
  for (int i = 0; i < kWarp; ++i) {
    if (mask >> i & 1 && (base + i >= static_cast<int>(s.threads.size()) || s.threads[base + i].done)) {
      fail(std::string(kind) + ": lane " + std::to_string(i) + " of the mask is not there");
    }
  }
  Meeting* meeting = nullptr;
  for (Meeting* each : s.open[self / kWarp]) {
    if (each->mask & mask) {
      if (each->mask != mask || std::strcmp(each->kind, kind) != 0) {
        fail(std::string("the warp has diverged: lanes wait at ") + each->kind + " and at " + kind);
      }
      meeting = each;
    }
  }
  if (!meeting) {
    if (s.spare.empty()) {
      s.meetings.push_back(std::make_unique<Meeting>());
      s.spare.push_back(s.meetings.back().get());
    }
    meeting = s.spare.back();
    s.spare.pop_back();
    meeting->kind = kind;
    meeting->mask = mask;
    meeting->arrived = 0;
    meeting->unread = __builtin_popcount(mask);
    s.open[self / kWarp].push_back(meeting);
  }
  deposit(meeting->slots[own]);
  meeting->arrived |= 1u << own;
  if (meeting->arrived == mask) {
    finish(*meeting);
    auto& open = s.open[self / kWarp];
    for (size_t i = 0; i < open.size(); ++i) {
      if (open[i] == meeting) {
        open.erase(open.begin() + i);
        break;
      }
    }
    for (int i = 0; i < kWarp; ++i) {
      if (i != own && mask >> i & 1) {
        s.ready.push_back(base + i);
      }
    }
  } else {
    wait(kind);
  }
  const Slot result = meeting->slots[own];
  if (--meeting->unread == 0) {
    s.spare.push_back(meeting);
  }
  return result;
}

// All threads of the block; returns how many came with a predicate that holds.
inline int barrier(const char* kind, bool predicate) {
  State& s = state();
  if (s.done > 0) {
    fail(std::string("waits at ") + kind + ", but another thread has left the kernel");
  }
  if (s.barrier.arrived > 0 && std::strcmp(s.barrier.kind, kind) != 0) {
    fail(std::string("the block has diverged: threads wait at ") + s.barrier.kind + " and at " + kind);
  }
  s.barrier.kind = kind;
  s.barrier.count += predicate;
  if (++s.barrier.arrived == static_cast<int>(s.threads.size())) {
    s.barrier.result = s.barrier.count;
    s.barrier.arrived = s.barrier.count = 0;
    for (int i = 0; i < static_cast<int>(s.threads.size()); ++i) {
      if (i != s.current) {
        s.ready.push_back(i);
      }
    }
  } else {
    wait(kind);
  }
  return s.barrier.result;
}

}  // namespace ssgrl::emulator
