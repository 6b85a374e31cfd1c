# The page of `cairn report` is part of the program: its own parts, and the plot library as it lies in the Python package
# plotly, compressed once. Without it the program is built all the same, and `cairn report` says what is missing.
set(report ${CMAKE_SOURCE_DIR}/trainer/report)
set(library ${CMAKE_BINARY_DIR}/report/plotly.min.js.gz)
set(version "")
file(GLOB CAIRN_PLOTLY_JS ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/plotly/package_data/plotly.min.js)
if(CAIRN_PLOTLY_JS)
  list(GET CAIRN_PLOTLY_JS 0 CAIRN_PLOTLY_JS)
  file(READ "${CAIRN_PLOTLY_JS}" head LIMIT 200)
  string(REGEX MATCH "v([0-9.]+)" version "${head}")
  set(version ${CMAKE_MATCH_1})
  if(NOT EXISTS ${library} OR "${CAIRN_PLOTLY_JS}" IS_NEWER_THAN ${library})
    file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/report)
    file(ARCHIVE_CREATE OUTPUT ${library} PATHS "${CAIRN_PLOTLY_JS}" FORMAT raw COMPRESSION GZip COMPRESSION_LEVEL 9)
  endif()
else()
  message(STATUS "no plotly.min.js in .venv: cairn report will say so")
  set(library ${CMAKE_BINARY_DIR}/report/no-library)
  if(NOT EXISTS ${library})
    file(WRITE ${library} "")
  endif()
endif()

file(GLOB parts CONFIGURE_DEPENDS ${report}/page.html ${report}/page.css ${report}/*.js)
set_source_files_properties(${report}/embedded.cpp PROPERTIES
  SKIP_PRECOMPILE_HEADERS ON
  COMPILE_DEFINITIONS "CAIRN_REPORT_FOLDER=\"${report}\";CAIRN_PLOTLY=\"${library}\";CAIRN_PLOTLY_VERSION=\"${version}\""
  OBJECT_DEPENDS "${parts};${library}")
