/* A page that is opened as a file may not ask for other files, so the search there shows titles without excerpts. */
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
