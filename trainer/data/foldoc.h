// The Free On-line Dictionary of Computing as Debian's package dict-foldoc installs it: about 12,000 entries, 5 MB.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cairn::data {

extern const char* const kFoldocFolder;  // /usr/share/dictd
extern const int kFoldocCleaning;        // version of the cleaning below; part of the cache key

// foldoc.index, foldoc.dict.dz in `folder`. Throws std::runtime_error that says how to install it where they are
// missing.
std::vector<std::string> foldoc_files(const std::string& folder = kFoldocFolder);

// One document an entry, in the dictionary's order: headword, empty line, text. Left out: the entries 00-database-*.
std::vector<std::string> read_foldoc(const std::string& folder = kFoldocFolder);

// An entry as stored -> plain text: alternative headwords, the subject mark (<jargon>), braces of cross-references,
// attributions ([{Jargon File}]) and the date at the end are dropped; the lines of a paragraph are joined.
std::string clean_foldoc(std::string_view entry);

}  // namespace cairn::data
