# The parts of the VM layer that know nothing of each other: record, events, consoles, images,
# overlays, admission, addresses. vm/CMakeLists.txt includes this; parts_tests.cmake has the tests.
find_package(SQLite3 REQUIRED)
set(SNOW_VM_PARTS time_text.cc store.cc outbox.cc event_log.cc console.cc image_import.cc image_catalog.cc overlay.cc
    admission.cc fault.cc network.cc network_guard.cc)
snow_library(vm_parts ${SNOW_VM_PARTS} DEPS snow_image snow_qemu snow_base SQLite::SQLite3)
