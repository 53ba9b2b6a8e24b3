// How Python calls emulated kernels: extern "C" functions that return what went wrong, or null.

#pragma once

#include <stdexcept>
#include <string>

#include "emulator.h"

// Runs the body with the threads of every block beginning from the first or from the last.
template <class Body>
const char* emulated(bool backwards, Body body) {
  static std::string message;
  ssgrl::emulator::state().backwards = backwards;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
