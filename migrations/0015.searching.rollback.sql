DROP FUNCTION hyperfleet_labelled(text, text, text);
DROP FUNCTION hyperfleet_place();
