# CUDA and NCCL: build/bin/libcairn_cuda.so, which the program opens where a GPU is used (models/kernels/cuda/table.h).
# The program itself links neither, so this is built only where nvcc is found.
file(GLOB CAIRN_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/models/kernels/cuda/module*.cpp)
set(CAIRN_NCCL_SOURCES ${CMAKE_SOURCE_DIR}/trainer/parallel/nccl_module.cpp)
set(CAIRN_CUDA_ARCHITECTURES "80-real;90a-real;100a-real" CACHE STRING "GPUs that the kernels are compiled for")

# The folders' libraries take every .cpp; these are the module's alone.
foreach(library cairn_models cairn_trainer)
  get_target_property(sources ${library} SOURCES)
  list(REMOVE_ITEM sources ${CAIRN_CUDA_SOURCES} ${CAIRN_NCCL_SOURCES})
  set_property(TARGET ${library} PROPERTY SOURCES ${sources})
endforeach()

# Sets CMAKE_CUDA_COMPILER where there is an nvcc, the toolkit's usual place included.
include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER)
  find_program(CAIRN_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin PATHS /usr/local/cuda/bin)
  mark_as_advanced(CAIRN_NVCC)
  if(CAIRN_NVCC)
    set(ENV{CUDACXX} ${CAIRN_NVCC})
  endif()
endif()
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
set(CMAKE_CUDA_ARCHITECTURES ${CAIRN_CUDA_ARCHITECTURES})
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(STATUS "CPU only: no nvcc")
  return()
endif()
if(NOT EXISTS ${TORCH_LIB_DIR}/libtorch_cuda.so)
  message(STATUS "CPU only: the torch wheel at ${CAIRN_TORCH} has no CUDA library")
  return()
endif()
enable_language(CUDA)
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()

# The wheels beside torch bring headers of the libraries that torch was built with; the toolkit has the rest.
get_filename_component(site_packages ${CAIRN_TORCH} DIRECTORY)
set(CAIRN_CUDA_HEADERS)
foreach(folder ${site_packages}/nvidia/cu13/include ${site_packages}/nvidia/nccl/include ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  if(EXISTS ${folder})
    list(APPEND CAIRN_CUDA_HEADERS ${folder})
  endif()
endforeach()

# Kernels see neither LibTorch nor the flags of the C++ files. C++17: CMake 3.25 does
# not know how to ask nvcc 13 for C++20.
file(GLOB kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/models/kernels/cuda/*.cu)
add_library(cairn_cuda_kernels OBJECT ${kernels})
set_target_properties(cairn_cuda_kernels PROPERTIES COMPILE_OPTIONS "-O3;-fmad=false;-Xcompiler=-Wall" COMPILE_DEFINITIONS ""
                      CUDA_STANDARD 17 CUDA_ARCHITECTURES "${CAIRN_CUDA_ARCHITECTURES}" CUDA_RUNTIME_LIBRARY Shared)

# nccl.h alone does not do: torch's header of NCCL groups wants those of the CUDA libraries too.
set(missing)
foreach(header nccl.h cuda_runtime_api.h cublas_v2.h cublasLt.h cusparse.h cusolverDn.h)
  find_file(found_${header} ${header} PATHS ${CAIRN_CUDA_HEADERS} NO_CACHE NO_DEFAULT_PATH)
  if(NOT found_${header})
    list(APPEND missing ${header})
  endif()
endforeach()
set(sources ${CAIRN_CUDA_SOURCES})
if(missing)
  list(JOIN missing ", " missing)
  set(with_nccl "without NCCL (no ${missing})")
else()
  set(with_nccl "with NCCL (${found_nccl.h})")
  list(APPEND sources ${CAIRN_NCCL_SOURCES})
endif()

add_library(cairn_cuda MODULE ${sources} $<TARGET_OBJECTS:cairn_cuda_kernels>)
cairn_use_torch(cairn_cuda)
target_include_directories(cairn_cuda SYSTEM PRIVATE ${CAIRN_CUDA_HEADERS})
target_link_libraries(cairn_cuda PRIVATE -Wl,--no-as-needed torch_cuda c10_cuda -Wl,--as-needed)
# Shared: the one libcudart that torch has loaded by then.
set_target_properties(cairn_cuda PROPERTIES LINKER_LANGUAGE CXX LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin
                      BUILD_RPATH "${TORCH_LIB_DIR};${site_packages}/nvidia/cu13/lib" CUDA_RUNTIME_LIBRARY Shared)
message(STATUS "CUDA module: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, sm ${CAIRN_CUDA_ARCHITECTURES}, ${with_nccl}")
