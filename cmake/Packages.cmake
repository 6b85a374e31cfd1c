# Debian's libraries as short target names.
find_package(PkgConfig REQUIRED)
function(cairn_package name module)
  pkg_check_modules(${name}_pc REQUIRED IMPORTED_TARGET ${module})
  add_library(${name} INTERFACE)
  target_link_libraries(${name} INTERFACE PkgConfig::${name}_pc)
endfunction()

cairn_package(xxhash libxxhash)
cairn_package(zstd libzstd)
cairn_package(zlib zlib)
cairn_package(deflate libdeflate)
cairn_package(pcre2 libpcre2-8)
cairn_package(icu icu-uc)
cairn_package(hwy libhwy)
cairn_package(yaml yaml-cpp)
cairn_package(fmt fmt)

find_package(nlohmann_json REQUIRED)
add_library(json INTERFACE)
target_link_libraries(json INTERFACE nlohmann_json::nlohmann_json)

find_package(CLI11 REQUIRED)
add_library(cli11 INTERFACE)
target_link_libraries(cli11 INTERFACE CLI11::CLI11)

add_library(hdf5 INTERFACE)
pkg_check_modules(hdf5_pc REQUIRED IMPORTED_TARGET hdf5-serial)
target_link_libraries(hdf5 INTERFACE PkgConfig::hdf5_pc)

# Only the headers: the wheel's libtorch_cpu carries Gloo itself.
add_library(gloo INTERFACE)
find_path(GLOO_INCLUDE gloo/algorithm.h REQUIRED)
