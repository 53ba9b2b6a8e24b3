/* Pages before the API: by default Sphinx's search puts every module whose name contains a word first. */
var Scorer = { objNameMatch: 11, objPartialMatch: 0, objPrio: { 0: 0, 1: 0, 2: -5 }, objPrioDefault: 0, title: 30, partialTitle: 15, term: 5, partialTerm: 2 };
