// What stops a template.
#pragma once

#include <stdexcept>
#include <string>

namespace cairn::jinja {

enum class Fault {
  syntax,       // not Jinja
  unsupported,  // Jinja, but beyond this engine: refused, never rendered otherwise
  raised,       // the template's own raise_exception(message)
  failed,       // what Jinja fails at too: an attribute of an undefined value, a sum of a number and a text ...
  limit,        // it takes too long, nests too deeply, grows too large
};

// `what()` is the message alone; for `raised` it is the template's.
struct Error : std::runtime_error {
  Error(Fault fault, const std::string& message, int line = 0) : std::runtime_error(message), fault(fault), line(line) {}
  Fault fault;
  int line;  // 0: not known where it was thrown
};

[[noreturn]] inline void fail(const std::string& message) { throw Error(Fault::failed, message); }
[[noreturn]] inline void unsupported(const std::string& what) {
  throw Error(Fault::unsupported, what + " is not supported");
}

}  // namespace cairn::jinja
