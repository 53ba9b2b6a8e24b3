// Makes an operator library importable as ssgrl_fast._C or _C_cuda. Loading it registers the operators; the module
// itself is empty. The build defines its name as TORCH_EXTENSION_NAME.
//
// Uses Python's limited API, so that one build works with every Python from 3.10 on.

#include <Python.h>

#define SSGRL_JOINED(a, b) a##b
#define SSGRL_INIT(name) SSGRL_JOINED(PyInit_, name)
#define SSGRL_TEXT_OF(name) #name
#define SSGRL_TEXT(name) SSGRL_TEXT_OF(name)

extern "C" PyMODINIT_FUNC SSGRL_INIT(TORCH_EXTENSION_NAME)(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT,
      SSGRL_TEXT(TORCH_EXTENSION_NAME),
      "The compiled operators; see torch.ops.ssgrl_fast.",
      -1,
      nullptr,
      nullptr,
      nullptr,
      nullptr,
      nullptr};
  return PyModule_Create(&definition);
}
