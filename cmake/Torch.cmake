# LibTorch from the PyPI wheel. TorchConfig.cmake wants the CUDA toolkit even for a CPU build, so the two
# libraries that the program needs are imported here by hand.
set(CAIRN_TORCH "" CACHE PATH "the folder 'torch' of an installed wheel")
if(NOT CAIRN_TORCH)
  file(GLOB found ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  list(GET found 0 CAIRN_TORCH)
endif()
if(NOT EXISTS ${CAIRN_TORCH}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "no LibTorch at '${CAIRN_TORCH}': run ./cairn, which installs it, or pass -DCAIRN_TORCH=<site-packages>/torch")
endif()
set(TORCH_LIB_DIR ${CAIRN_TORCH}/lib)
set(TORCH_INCLUDE_DIRS ${CAIRN_TORCH}/include ${CAIRN_TORCH}/include/torch/csrc/api/include)

# libtorch_cpu of the CUDA wheel needs libcupti and libcudart, which lie in wheels beside it.
add_library(torch INTERFACE)
target_include_directories(torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_link_directories(torch INTERFACE ${TORCH_LIB_DIR})
target_link_libraries(torch INTERFACE -Wl,--no-as-needed torch_cpu c10 -Wl,--as-needed)
target_link_options(torch INTERFACE -Wl,--allow-shlib-undefined)
# c10d's interface headers hide behind these.
target_compile_definitions(torch INTERFACE USE_C10D USE_C10D_GLOO USE_DISTRIBUTED)
# The wheel brings fmt's headers but not its library.
target_compile_definitions(torch INTERFACE FMT_HEADER_ONLY=1)
