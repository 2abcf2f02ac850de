# snow_library(NAME sources... [DEPS targets...]): a component's static library, named snow_NAME.
# snow_test(NAME [SOURCES ...] [DEPS targets...]): NAME.cc beside the code, a GoogleTest program
#   labelled "unit"; DEPS as in snow_library.
# snow_fuzz(NAME [DEPS targets...]): NAME.cc with LLVMFuzzerTestOneInput. Under clang with
#   -DSNOW_FUZZ=ON a libFuzzer program; otherwise it is linked with cmake/fuzz_main.cc, which runs
#   it over NAME_corpus/ and over seeded random inputs as a unit test.
option(SNOW_FUZZ "build fuzz targets with libFuzzer (needs clang)" OFF)
if(SNOW_FUZZ)
  # The libraries too: libFuzzer is led by what an input reaches in them.
  add_compile_options(-fsanitize=fuzzer-no-link)
  add_link_options(-fsanitize=fuzzer-no-link)
endif()

function(snow_library name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  add_library(snow_${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(snow_${name} PUBLIC ${ARG_DEPS} fmt::fmt Threads::Threads)
endfunction()

function(snow_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${name}.cc ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest_main GTest::gmock)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS unit TIMEOUT 300)
endfunction()

function(snow_fuzz name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  if(SNOW_FUZZ)
    add_executable(${name} ${name}.cc)
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  else()
    add_executable(${name} ${name}.cc ${CMAKE_SOURCE_DIR}/cmake/fuzz_main.cc)
    add_test(NAME ${name} COMMAND ${name} 20000 ${CMAKE_CURRENT_SOURCE_DIR}/${name}_corpus)
    set_tests_properties(${name} PROPERTIES LABELS unit TIMEOUT 300)
  endif()
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
endfunction()
