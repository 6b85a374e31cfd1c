#include "trainer/report/embedded.h"

// CAIRN_REPORT_FOLDER, CAIRN_PLOTLY (an empty file where there is no library) and CAIRN_PLOTLY_VERSION come from
// cmake/Report.cmake, which also has this file compiled again when one of the parts changes.
#define CAIRN_PART(file) ".incbin \"" CAIRN_REPORT_FOLDER "/" file "\"\n"
#define CAIRN_EMBED(name, incbin)                                                                           \
  asm(".pushsection .rodata\nembedded_" #name "_begin:\n" incbin "embedded_" #name "_end:\n.popsection\n"); \
  extern "C" const char embedded_##name##_begin[], embedded_##name##_end[];

CAIRN_EMBED(html, CAIRN_PART("page.html"))
CAIRN_EMBED(css, CAIRN_PART("page.css"))
CAIRN_EMBED(scripts, CAIRN_PART("base.js") CAIRN_PART("frame.js") CAIRN_PART("curves.js") CAIRN_PART("timeline.js")
                         CAIRN_PART("layers.js") CAIRN_PART("arrays.js") CAIRN_PART("text.js") CAIRN_PART("main.js"))
CAIRN_EMBED(library, ".incbin \"" CAIRN_PLOTLY "\"\n")

namespace cairn::report {

Embedded embedded() {
  auto view = [](const char* begin, const char* end) { return std::string_view(begin, end - begin); };
  return {.html = view(embedded_html_begin, embedded_html_end),
          .css = view(embedded_css_begin, embedded_css_end),
          .scripts = view(embedded_scripts_begin, embedded_scripts_end),
          .library = view(embedded_library_begin, embedded_library_end),
          .library_version = CAIRN_PLOTLY_VERSION};
}

}  // namespace cairn::report
