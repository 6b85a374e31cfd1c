// What the program carries for the page: its parts (page.html, page.css, *.js of this folder) and the plot library.
#pragma once

#include <string_view>

namespace cairn::report {

struct Embedded {
  std::string_view html, css;
  std::string_view scripts;  // *.js of this folder in the order of their use
  std::string_view library;  // plotly.min.js, gzip; empty where it was not there when the program was built
  std::string_view library_version;
};

// Nothing is unpacked: the bytes lie in the program's file.
Embedded embedded();

}  // namespace cairn::report
